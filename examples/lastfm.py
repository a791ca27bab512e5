"""
The Last.fm data of HetRec 2011 from end to end: which artist does a user tag next?

    python examples/lastfm.py                                      # downloaded once from GroupLens
    python examples/lastfm.py --data hetrec2011-lastfm-2k.zip      # or from a file or folder
    python examples/lastfm.py --help

Order and split are by time, so that the results are not those of the published records, whose lists tell their targets
(docs/recipes.md). Times here are months: most events of a user share one, and their order within it says nothing.
The same words again go on where a run broke off. The paper's setting, for a GPU, is examples/configs/lastfm.yaml.
"""

import os
import sys
from dataclasses import asdict, dataclass, field


# Read when torch loads: its threads wait in a loop otherwise, which takes the cores from whatever else runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from peft import LoraConfig
from transformers import HfArgumentParser
from trl import SFTConfig

from trl_sdpo import SoftmaxDPOConfig
from trl_sdpo.evaluation import results_text
from trl_sdpo.pipeline import (
    Run,
    keep_freed_memory,
    log_to_terminal,
    machine_defaults,
    make_small_llama,
    non_overlapping_windows,
)


SMALL_LLAMA = "small-llama"


@dataclass
class Arguments:
    """Flags of the example. Those of training were searched on MovieLens-100k, not here."""

    data: str | None = field(
        default=None, metadata={"help": "Folder or zip of hetrec2011-lastfm-2k. Default: downloaded once and cached."}
    )
    model: str = field(
        default=SMALL_LLAMA, metadata={"help": f"'{SMALL_LLAMA}', made here; a directory; or a model on the Hub."}
    )
    output_dir: str = field(default="outputs/lastfm", metadata={"help": "Where results and models go."})
    resume: bool = field(default=True, metadata={"help": "Take up an earlier run; --no_resume begins anew."})
    min_interactions: int = field(default=4, metadata={"help": "Events of a user and of an artist at least."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    eval_records: int = field(default=2000, metadata={"help": "Held-out records to rank."})
    sft_epochs: int = field(default=3, metadata={"help": "Epochs of supervised fine-tuning."})
    dpo_records: int = field(default=3840, metadata={"help": "Training records of S-DPO."})
    num_negatives: int = field(default=15, metadata={"help": "Negatives K of a record in a step of S-DPO."})
    beta: float = field(default=3.0, metadata={"help": "β of S-DPO."})


def main(args: Arguments) -> dict:
    keep_freed_memory()
    run = Run(args.output_dir, resume=args.resume)

    # 1. Records: a history of at most 10 artists, the artist that came next, and 19 that the user never touched. All events
    #    of the training split come before those that are tested. Each name is a line, in the history and as completion.
    history_size = 10
    dataset = run.prepare(
        "lastfm",
        path=args.data,
        seed=args.seed,
        domain="music",
        min_interactions=args.min_interactions,
        history_size=history_size,
        num_candidates=20,
        pool_size=max(args.num_negatives, 19),
        max_validation_records=1,
        max_test_records=args.eval_records,
    )

    # 2. The model: a Llama of four million parameters with random weights and a tokenizer of the names, or any other.
    small = args.model == SMALL_LLAMA
    base = make_small_llama(run.data, run.directory / "base", seed=args.seed) if small else args.model
    # all weights of the small one are trained first; of another model an adapter is, which S-DPO goes on with
    lora = LoraConfig(r=16, lora_alpha=64, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    common = {
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,  # of all steps, as below
        "logging_steps": 0.025,
        "save_steps": 0.25,
        "save_total_limit": 1,
        "seed": args.seed,
        **machine_defaults(),
    }

    # 3. Supervised fine-tuning on all tokens of a row, so that each of its eleven names teaches what comes next.
    windows = non_overlapping_windows(dataset["train"], history_size + 1, epochs=args.sft_epochs, seed=args.seed)
    sft_args = {"num_train_epochs": 1, "gradient_accumulation_steps": 2, "completion_only_loss": False, **common}
    sft_config = SFTConfig(learning_rate=2e-3 if small else 2e-4, **sft_args)
    sft = run.sft(base, sft_config, windows, peft_config=None if small else lora)

    # 4. Softmax-DPO from there: the artist that came next against K others at once. The model of step 3 is the reference.
    records = dataset["train"].shuffle(seed=args.seed).select(range(min(args.dpo_records, len(dataset["train"]))))
    dpo_args = {"num_train_epochs": 1, "gradient_accumulation_steps": 4, "learning_rate": 1e-4, **common}
    dpo_config = SoftmaxDPOConfig(num_negatives=args.num_negatives, beta=args.beta, **dpo_args)
    aligned = run.align(sft, dpo_config, records, peft_config=lora if small else None)

    # 5. The rank of the artist that came next among its 20 candidates, beside chance and popularity, in a report.
    models = {"base": base, "sft": sft, "s-dpo": aligned}
    results = run.evaluate(models, reference="sft", seed=args.seed, settings=asdict(args))
    print(f"\n{results_text(results)}\n\n{run.directory}: report/results.html, the models in sft/ and s-dpo/.")
    return results


if __name__ == "__main__":
    log_to_terminal(stream=sys.stdout)
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
