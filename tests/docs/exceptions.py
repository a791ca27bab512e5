"""
What of README.md and docs/*.md does not run as it is printed, and why. Add a line for a new page here.

Everything else runs, see `test_snippets.py`: a page's blocks in their order, in one directory (`page_files.py` says what
is in it), its Python blocks in one namespace.
"""

from typing import NamedTuple


class NotRun(NamedTuple):
    """
    A command or a Python block that is not run.

    Args:
        page (`str`):
            Name of the page.
        starts_with (`str`):
            How the command, or the first line of the Python block, begins.
        reason (`str`):
            Why it does not run here. Instead, the words of a command are parsed by the program itself (flags, choices,
            types), scripts and configurations that it names must be there, and a Python block must compile and import
            what it imports.
    """

    page: str
    starts_with: str
    reason: str


NOT_RUN = [
    NotRun("README.md", "python examples/movielens.py", "takes minutes; tests/examples runs it on little data"),
    NotRun("results.md", "python benchmarks/paper_table.py", "takes over an hour; tests/benchmarks runs a tiny one"),
    NotRun("training.md", "ACCELERATE_USE_CPU=true torchrun", "processes of its own; test_distributed.py has them"),
    NotRun("training.md", "accelerate launch", "needs several GPUs or machines"),
    NotRun("training.md", "python dpo.py ... ", "stands for the flags of the run before; test_checkpoints.py resumes"),
]

# Python that runs ahead of a page's blocks: the names that its text takes as given.
GIVEN = {
    "training.md": """
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer

tokenizer = AutoTokenizer.from_pretrained("model")
get_peft_model(AutoModelForCausalLM.from_pretrained("model"), LoraConfig(task_type="CAUSAL_LM")).save_pretrained("outputs/sft")
base = AutoModelForCausalLM.from_pretrained("model")
dataset = load_dataset("records", split="train")
args = SoftmaxDPOConfig("outputs/continued", use_cpu=True, bf16=False, gradient_checkpointing=False)
""",
}
