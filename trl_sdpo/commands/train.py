"""`trl-sdpo train --dataset_name DIR --model_name_or_path MODEL --output_dir DIR`: train with Softmax-DPO."""

import argparse
import sys

from ..cli import suggest
from ..losses.loss_types import MULTI_PREFERENCE_LOSS_TYPES
from ..trainer.softmax_dpo_config import SoftmaxDPOConfig, check_values
from ._training import TrainingParser, TrainingRun, how_it_goes_on, launch, needs_launch, train_here


# TRL's losses that are for records with a single rejected completion alone
_OF_PLAIN_RECORDS = ("aot", "aot_unpaired")


def make_parser(prog: str) -> TrainingParser:
    """The parser of the command."""
    return TrainingParser(
        SoftmaxDPOConfig,
        {"Softmax-DPO": ("beta", "num_negatives", "loss_type", "precompute_ref_log_probs", "prefix_sharing")},
        _check_values,
        prog=prog,
        usage=f"{prog} --dataset_name DIR --model_name_or_path MODEL --output_dir DIR [flags]",
        description="Train a model with Softmax-DPO on multi-preference records. Where the model is an adapter, as "
        "`trl-sdpo sft` leaves it, it is trained further, and as it was it is the reference; otherwise --use_peft begins "
        "one, and without it all weights are trained.",
    )


def _check_values(values: argparse.Namespace) -> None:
    check_values(values)
    known = [*MULTI_PREFERENCE_LOSS_TYPES, *_OF_PLAIN_RECORDS]
    for name in [values.loss_type] if isinstance(values.loss_type, str) else values.loss_type:
        if name not in known:
            raise ValueError(f"`loss_type` {name!r} is none of {known}.{suggest(name, known)}")


def run(args: TrainingRun) -> None:
    """Train, in processes of accelerate where that is asked for."""
    if needs_launch(args.launch_words):
        launch("trl_sdpo.commands.train", args.launch_words, args.words)
    else:
        run_here(args)


def run_here(args: TrainingRun) -> None:
    """Train in this process, which may be one of several."""
    from ..pipeline.trainers import make_softmax_dpo_trainer

    train_here(args, make_softmax_dpo_trainer)


if __name__ == "__main__":
    from ..cli import run_command

    sys.exit(run_command(make_parser, run_here, "trl-sdpo train", sys.argv[1:], how_it_goes_on))
