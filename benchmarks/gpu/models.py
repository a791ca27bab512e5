"""Models of known sizes with random weights, records of random tokens, and trainers for them."""

import random
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer, to_preference_pairs


# hidden, feed-forward, layers, heads, heads of keys and values, vocabulary
SIZES = {
    "tiny": (32, 64, 2, 4, 2, 300),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "7B": (4096, 11008, 32, 32, 32, 32000),
}
END, PAD = 0, 1


def make_model(
    size: str, dtype: str, device: str, attention: str = "sdpa", seed: int = 0, experts: bool = False
) -> Any:
    """A Llama, or a Mixtral of four experts, of a size, with random weights made on the device."""
    hidden, inner, layers, heads, pairs, vocabulary = SIZES[size]
    torch.manual_seed(seed)
    options = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": pairs, "max_position_embeddings": 32768,
        "attn_implementation": attention, "dtype": getattr(torch, dtype),
        "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD,
    }  # fmt: skip
    with torch.device(device):
        if experts:
            config = MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **options)
            return MixtralForCausalLM(config).to(getattr(torch, dtype))
        return LlamaForCausalLM(LlamaConfig(**options)).to(getattr(torch, dtype))


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of words "w2", "w3", ..., each a token."""
    words = {"<end>": END, "<pad>": PAD} | {f"w{token}": token for token in range(2, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def make_records(
    count: int, prompt: int, negatives: int, vocabulary: int, completion: int = 6, seed: int = 0
) -> Dataset:
    """Records of random words: prompts of about `prompt` tokens, completions of about `completion`."""
    rng = random.Random(seed)

    def words(length: int) -> str:
        count = rng.randint(int(0.8 * length), int(1.2 * length))
        return "".join(f" w{rng.randrange(2, vocabulary)}" for _ in range(count))

    rows = [
        {"prompt": words(prompt).strip(), "chosen": words(completion), "rejected": [words(completion) for _ in range(negatives)]}
        for _ in range(count)
    ]  # fmt: skip
    return Dataset.from_list(rows)


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=True)


def make_trainer(
    model: Any, records: Dataset, device: str, *, pairs: bool = False, adapter: bool = True, **options
) -> Any:
    """`SoftmaxDPOTrainer`, or for `pairs` TRL's over the K pairs of each record, in a folder for temporary files."""
    if pairs:
        records = to_preference_pairs(records)
    bfloat16 = next(model.parameters()).dtype == torch.bfloat16
    defaults = {
        "output_dir": tempfile.mkdtemp(), "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "max_length": None, "per_device_train_batch_size": 2, "logging_steps": 1, "max_steps": 3, "learning_rate": 1e-4,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False, "bf16": bfloat16, "use_cpu": device == "cpu",
        "dataloader_num_workers": 0,
    }  # fmt: skip
    trainer, config = (DPOTrainer, DPOConfig) if pairs else (SoftmaxDPOTrainer, SoftmaxDPOConfig)
    return trainer(
        model=model, args=config(**{**defaults, **options}), train_dataset=records, processing_class=make_tokenizer(model.config.vocab_size),
        peft_config=lora() if adapter else None,
    )  # fmt: skip


def losses(trainer: Any) -> list[float]:
    """Losses of the steps of a training."""
    trainer.train()
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
