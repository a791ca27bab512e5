"""`trl-sdpo sft --dataset_name DIR --model_name_or_path MODEL --output_dir DIR`: fine-tune on the chosen completions."""

import sys

from trl import SFTConfig

from ._training import TrainingParser, TrainingRun, how_it_goes_on, launch, needs_launch, train_here


def make_parser(prog: str) -> TrainingParser:
    """The parser of the command."""
    return TrainingParser(
        SFTConfig,
        {"supervised fine-tuning": ("completion_only_loss", "packing", "eos_token")},
        prog=prog,
        usage=f"{prog} --dataset_name DIR --model_name_or_path MODEL --output_dir DIR [flags]",
        description="Fine-tune a model on the prompts and chosen completions of multi-preference records, with the "
        "tokens that `trl-sdpo train` has. The loss is that of the completions; --completion_only_loss False takes in the "
        "prompts.",
    )


def run(args: TrainingRun) -> None:
    """Train, in processes of accelerate where that is asked for."""
    if needs_launch(args.launch_words):
        launch("trl_sdpo.commands.sft", args.launch_words, args.words)
    else:
        run_here(args)


def run_here(args: TrainingRun) -> None:
    """Train in this process, which may be one of several."""
    from ..pipeline.trainers import make_sft_trainer

    if args.training_args.chat_template_path is not None or args.training_args.assistant_only_loss:
        raise ValueError(
            "--chat_template_path and --assistant_only_loss are not for these records: the tokens are to be those of "
            "`trl-sdpo train`. Save the tokenizer with the template that you want, and train on the completions."
        )
    train_here(args, make_sft_trainer)


if __name__ == "__main__":
    from ..cli import run_command

    sys.exit(run_command(make_parser, run_here, "trl-sdpo sft", sys.argv[1:], how_it_goes_on))
