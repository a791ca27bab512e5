"""`trl-sdpo sft --dataset_name DIR --model_name_or_path MODEL --output_dir DIR`: fine-tune on the chosen completions."""

import sys

from trl import SFTConfig

from ._launch import launch, needs_launch
from ._training import (
    TrainingParser,
    TrainingRun,
    check_output_dir,
    load_policy,
    load_splits,
    prepare_quantized,
    train_and_save,
)


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
    from ..pipeline.stage_records import chosen_rows, completions_are_lines
    from ._sft_trainer import PublicCardSFTTrainer

    script_args, training_args, model_args = args.script_args, args.training_args, args.model_args
    if training_args.chat_template_path is not None or training_args.assistant_only_loss:
        raise ValueError(
            "--chat_template_path and --assistant_only_loss are not for these records: the tokens are to be those of "
            "`trl-sdpo train`. Save the tokenizer with the template that you want, and train on the completions."
        )
    check_output_dir(script_args, training_args)
    train, evaluation = load_splits(script_args)
    model, tokenizer, kwargs = load_policy(model_args, training_args)
    if training_args.eos_token is not None:
        tokenizer.eos_token = training_args.eos_token
    if training_args.completion_only_loss is None:
        training_args.completion_only_loss = True  # which TRL sees in a column that these rows do not need
    append_eos = not completions_are_lines(train)
    eos_token = tokenizer.eos_token if append_eos else ""
    options = tokenizer, eos_token, training_args.max_length, training_args.dataset_num_proc
    trainer = PublicCardSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=chosen_rows(train, "train", *options),
        eval_dataset=None if evaluation is None else chosen_rows(evaluation, "eval", *options),
        processing_class=tokenizer,
        **kwargs,
    )
    prepare_quantized(trainer, model_args)
    train_and_save(trainer, script_args, append_eos)


if __name__ == "__main__":
    from ..cli import run_command

    sys.exit(run_command(make_parser, run_here, "trl-sdpo sft", sys.argv[1:]))
