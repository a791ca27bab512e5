"""The flags that the examples share, and what they are when they are not given. Imported as a sibling module."""

from dataclasses import dataclass, field

import language_models
import torch

from trl_sdpo.recsys import TEMPLATES
from trl_sdpo.recsys.prompts.templates import PROMPT_STYLES, select_templates


SMALL_LLAMA = "small-llama"

# What a flag is when it is not given, by road. The small Llama's were searched on validation records, see README.md;
# those of the GPU are the paper's.
DEFAULTS = {
    "small-llama": {
        "prompt_style": "history",
        "sft_on": "all",
        "sft_epochs": 3,
        "sft_batch_size": 32,
        "sft_learning_rate": 2e-3,
        "dpo_records": 3840,
        "dpo_epochs": 1,
        "dpo_batch_size": 64,
        "more_sft_learning_rate": 3e-4,
        "dpo_learning_rate": 1e-4,
        "num_negatives": 15,
        "beta": 3.0,
        "max_grad_norm": 1.0,
        "lora_r": 16,
        "eval_records": 2000,
    },
    "cpu": {
        "prompt_style": "history",
        "sft_on": "all",
        "sft_records": 320,
        "sft_epochs": 1,
        "sft_batch_size": 16,
        "sft_learning_rate": 1e-3,
        "more_sft_learning_rate": 2e-4,
        "max_grad_norm": 1.0,
        "dpo_records": 80,
        "dpo_epochs": 1,
        "dpo_batch_size": 8,
        "dpo_learning_rate": 1e-4,
        "num_negatives": 15,
        "beta": 1.0,
        "lora_r": 16,
        "eval_records": 200,
    },
    "gpu": {
        "prompt_style": "candidates",
        "template": "random",
        "sft_on": "completion",
        "sft_epochs": 5,
        "sft_batch_size": 128,
        "sft_learning_rate": 1e-4,
        "more_sft_learning_rate": 2e-5,
        "max_grad_norm": 0.3,
        "dpo_records": None,
        "dpo_epochs": 3,
        "dpo_batch_size": 128,
        "dpo_learning_rate": 1e-5,
        "num_negatives": 3,
        "beta": 1.0,
        "lora_r": 8,
        "eval_records": 2000,
    },
}


@dataclass
class RecommendationArguments:
    """Flags of an example. Those without a default take one that suits the machine and the model."""

    model: str | None = field(
        default=None,
        metadata={
            "help": f"'{SMALL_LLAMA}' (a Llama from scratch), a directory, or a model on the Hub. Default: {SMALL_LLAMA} "
            f"on a CPU, {language_models.SMOLLM2} on a GPU."
        },
    )
    data: str | None = field(
        default=None, metadata={"help": "Files of the source. Default: downloaded once and cached."}
    )
    output_dir: str = field(default="outputs/recommendation", metadata={"help": "Where results and models go."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    resume: bool = field(
        default=False, metadata={"help": "Take up the finished and half-finished stages of an earlier run."}
    )
    prompt_style: str | None = field(
        default=None, metadata={"help": "Show the candidates in the prompt or not: 'candidates' or 'history'."}
    )
    template: str | None = field(
        default=None, metadata={"help": f"Wording: 'random', or one of {', '.join(TEMPLATES)}."}
    )
    history_size: int = field(default=10, metadata={"help": "Titles of the history at most."})
    num_candidates: int = field(default=20, metadata={"help": "Candidates to rank, with the target."})
    eval_records: int | None = field(default=None, metadata={"help": "Held-out records to rank."})
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a prompt with its completion."})
    sft_on: str | None = field(
        default=None, metadata={"help": "Tokens that SFT learns: 'all' of the row or the 'completion' alone."}
    )
    sft_records: int | None = field(
        default=None,
        metadata={"help": "Training records of SFT at most. Default: windows that do not overlap, or all."},
    )
    sft_epochs: int | None = field(default=None, metadata={"help": "Epochs of SFT."})
    sft_batch_size: int | None = field(default=None, metadata={"help": "Records of an optimizer step of SFT."})
    sft_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of SFT."})
    more_sft: bool = field(
        default=True, metadata={"help": "Also continue SFT for as many seconds as S-DPO takes, to compare."}
    )
    more_sft_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the continued SFT."}
    )
    dpo_records: int | None = field(default=None, metadata={"help": "Training records of S-DPO at most."})
    dpo_epochs: int | None = field(default=None, metadata={"help": "Epochs of S-DPO."})
    dpo_batch_size: int | None = field(default=None, metadata={"help": "Records of an optimizer step of S-DPO."})
    dpo_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of S-DPO."})
    num_negatives: int | None = field(default=None, metadata={"help": "Negatives K of a record in a step of S-DPO."})
    pool_size: int | None = field(
        default=None,
        metadata={"help": "Negatives stored with a record, to draw from. Default: the larger of K and 19."},
    )
    beta: float | None = field(default=None, metadata={"help": "β of S-DPO."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Norm at which gradients are clipped."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights: 'bfloat16' halves the memory of a large base."}
    )
    micro_batch_size: int = field(
        default=16, metadata={"help": "Records in memory at once; a step accumulates as many as it needs."}
    )
    vocab_size: int = field(default=8192, metadata={"help": f"Vocabulary of {SMALL_LLAMA}."})
    hidden_size: int = field(default=256, metadata={"help": f"Width of {SMALL_LLAMA}."})
    num_layers: int = field(default=2, metadata={"help": f"Layers of {SMALL_LLAMA}."})

    def __post_init__(self):
        gpu = torch.cuda.is_available()
        self.model = self.model or (language_models.SMOLLM2 if gpu else SMALL_LLAMA)
        road = SMALL_LLAMA if self.model == SMALL_LLAMA else "gpu" if gpu else "cpu"
        for name, value in DEFAULTS[road].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, value in vars(self).items():
            if name not in ("seed", "resume", "more_sft") and isinstance(value, (int, float)) and value <= 0:
                raise ValueError(f"--{name} must be above 0, got {value}.")
        self.pool_size = self.pool_size or max(self.num_negatives, self.num_candidates - 1)
        if self.sft_on not in ("all", "completion"):
            raise ValueError(f"--sft_on must be 'all' or 'completion', got {self.sft_on!r}.")
        if self.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"--prompt_style must be one of {PROMPT_STYLES}, got {self.prompt_style!r}.")

    @property
    def from_scratch(self) -> bool:
        return self.model == SMALL_LLAMA

    @property
    def lines(self) -> bool:
        """Whether each title of a prompt is a line, as a completion is."""
        return all(template.completion_suffix for template in select_templates(self.prompt_style, self.template))

    @property
    def windows(self) -> bool:
        """Whether every title of a row is learned, so that rows which overlap would repeat each other."""
        return self.lines and self.sft_on == "all" and self.sft_records is None
