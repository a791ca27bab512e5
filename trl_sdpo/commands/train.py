"""`trl-sdpo train --dataset_name DIR --model_name_or_path MODEL --output_dir DIR`: train with Softmax-DPO."""

import sys

from ..trainer.softmax_dpo_config import SoftmaxDPOConfig
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
    from ..pipeline.stage_records import completions_are_lines, tokenize_lines
    from ..trainer.softmax_dpo_trainer import SoftmaxDPOTrainer

    script_args, training_args, model_args = args.script_args, args.training_args, args.model_args
    check_output_dir(script_args, training_args)
    train, evaluation = load_splits(script_args)
    model, tokenizer, kwargs = load_policy(model_args, training_args)
    append_eos = not completions_are_lines(train)
    if not append_eos:
        options = tokenizer, training_args.dataset_num_proc
        train = tokenize_lines(train, "train", *options)
        evaluation = None if evaluation is None else tokenize_lines(evaluation, "eval", *options)
    trainer = SoftmaxDPOTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        **kwargs,
    )
    prepare_quantized(trainer, model_args)
    train_and_save(trainer, script_args, append_eos)


if __name__ == "__main__":
    from ..cli import run_command

    sys.exit(run_command(make_parser, run_here, "trl-sdpo train", sys.argv[1:]))
