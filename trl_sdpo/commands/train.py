"""`trl-sdpo train --dataset_name DIR --model_name_or_path MODEL --output_dir DIR`: train with Softmax-DPO."""

import sys

from ..trainer.softmax_dpo_config import SoftmaxDPOConfig
from ._training import TrainingParser, TrainingRun, how_it_goes_on, launch, needs_launch, train_here


def make_parser(prog: str) -> TrainingParser:
    """The parser of the command."""
    return TrainingParser(
        SoftmaxDPOConfig,
        {"Softmax-DPO": ("beta", "num_negatives", "loss_type", "precompute_ref_log_probs", "prefix_sharing")},
        prog=prog,
        usage=f"{prog} --dataset_name DIR --model_name_or_path MODEL --output_dir DIR [flags]",
        description="Train a model with Softmax-DPO on multi-preference records. Where the model is an adapter, as "
        "`trl-sdpo sft` leaves it, it is trained further, and as it was it is the reference; otherwise --use_peft begins "
        "one, and without it all weights are trained.",
    )


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
