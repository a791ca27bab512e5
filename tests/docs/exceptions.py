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
    NotRun("README.md", "trl-sdpo demo", "serves until it is ended; tests/serving has it"),
    NotRun(
        "baselines.md",
        "python benchmarks/baselines/recbole_baselines.py",
        "installs RecBole; test_recbole_baselines.py runs what needs none of it",
    ),
    NotRun("baselines.md", "trl-sdpo evaluate", "takes the scores of RecBole; tests/commands has the flags"),
    NotRun(
        "gpu.md", "python benchmarks/gpu/run.py", "takes a GPU, or a minute; tests/benchmarks/test_gpu.py rehearses it"
    ),
    NotRun(
        "demo.md",
        "trl-sdpo demo",
        "serves until it is ended, or writes a Space of models on the Hub; tests/serving does both",
    ),
    NotRun("demo.md", "trl-sdpo push", "needs the Hub; test_pushes.py has one"),
    NotRun("demo.md", "trl-sdpo serve", "serves until it is ended; tests/serving/test_server.py does"),
    NotRun("hub.md", "trl-sdpo push", "needs the Hub; test_push.py has one"),
    NotRun("hub.md", "trainer.push_to_hub()", "needs the Hub; test_hub.py has one"),
    NotRun("hub.md", "from huggingface_hub import snapshot_download", "goes on from the Hub; test_hub.py does"),
    NotRun("hub.md", "from trl_sdpo import push_dataset", "needs the Hub; test_push.py has one"),
    NotRun("README.md", "python examples/movielens.py", "takes minutes; tests/examples runs it on little data"),
    NotRun("results.md", "python -m benchmarks.study", "takes over an hour; tests/benchmarks runs a tiny one"),
    NotRun("training.md", "ACCELERATE_USE_CPU=true torchrun", "processes of its own; test_distributed.py has them"),
    NotRun("training.md", "accelerate launch", "needs several GPUs or machines"),
    NotRun("training.md", "python dpo.py ... ", "stands for the flags of the run before; test_checkpoints.py resumes"),
]

# Python that runs ahead of a page's blocks: the names that its text takes as given.
GIVEN = {
    "demo.md": """
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_sdpo import Catalogue, RecommenderConfig, save_recommender_files
from trl_sdpo.recsys import get_template

folder = "outputs/movielens/s-dpo"
AutoModelForCausalLM.from_pretrained("model").save_pretrained(folder)
AutoTokenizer.from_pretrained("model").save_pretrained(folder)
titles = ["Toy Story (1995)", "Fargo (1996)", *(f"Film {number} (1990)" for number in range(12))]
config = RecommenderConfig([get_template("lines")], history_size=10)
save_recommender_files(folder, config, Catalogue([str(number) for number in range(len(titles))], titles))
pq.write_table(pa.table({"history": [titles[:2], titles[3:4]]}), "histories.parquet")
""",
    "evaluation.md": """
from transformers import AutoModelForCausalLM, AutoTokenizer

AutoModelForCausalLM.from_pretrained("model").save_pretrained("outputs/s-dpo")
AutoTokenizer.from_pretrained("model").save_pretrained("outputs/s-dpo")
""",
    "new_items.md": """
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_sdpo import copy_recommender_files
from trl_sdpo.recsys import prepare

formats = {"item_format": "{title}[ ({genres:3})]", "completion_format": "[{genres:2}: ]{title}"}
prepare("movielens-1m", "data/given", path="ml-1m.zip", loader_options={"attributes": "genres,year"}, **formats)
AutoModelForCausalLM.from_pretrained("model").save_pretrained("outputs/s-dpo")
AutoTokenizer.from_pretrained("model").save_pretrained("outputs/s-dpo")
copy_recommender_files("data/given", "outputs/s-dpo")
Path("new.csv").write_text("item_id,title,genres\\nn3,Night Train (2026),Drama|War\\n")
""",
    "recommend.md": """
import json
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_sdpo import Catalogue, RecommenderConfig, copy_recommender_files, save_recommender_files
from trl_sdpo.recsys import get_template, prepare, write_scores

prepare("movielens-100k", "data/ml-100k", path="ml-100k.zip", max_test_records=12)
for folder in ("outputs/sft", "outputs/s-dpo", "outputs/movielens/s-dpo", "my-model"):
    AutoModelForCausalLM.from_pretrained("model").save_pretrained(folder)
    AutoTokenizer.from_pretrained("model").save_pretrained(folder)
    copy_recommender_files("data/ml-100k", folder)
titles = ["Toy Story (1995)", "The Usual Suspects (1995)", "Fargo (1996)", "Heat (1995)", "Babe (1995)"]
titles += ["Twelve Monkeys (1995)", *(f"Film {number} (1990)" for number in range(5))]
catalogue = Catalogue(item_ids=[str(number) for number in range(len(titles))], titles=titles)
save_recommender_files("outputs/movielens/s-dpo", RecommenderConfig([get_template("watched")], history_size=10), catalogue)
Path("histories.jsonl").write_text(json.dumps({"user_id": "1", "history": titles[:2]}) + "\\n")
sft_scores, s_dpo_scores = np.random.default_rng(0).normal(size=(2, 12, 20))
write_scores(list(sft_scores), "sasrec.parquet")
""",
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
