"""A file with a section per command, and the command line in this process."""

import yaml

from trl_sdpo import cli


SECTIONS = {
    "common": {
        "dataset_name": "data",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "logging_steps": 1,
    },
    "prepare": {
        "source": "table",
        "path": "log.csv",
        "output_dir": "data",
        "domain": "items",
        "num_candidates": 4,
        "loader_options": ["user=user", "item=item", "timestamp=time", "title=title"],
    },
    "sft": {"model_name_or_path": "model", "output_dir": "sft", "use_peft": True, "learning_rate": 0.01},
    "train": {"model_name_or_path": "sft", "output_dir": "s-dpo", "num_negatives": 2},
}


def write(sections):
    with open("mine.yaml", "w") as file:
        yaml.safe_dump(sections, file, sort_keys=False)


def main(*words):
    """The exit status of the command."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
