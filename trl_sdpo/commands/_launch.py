"""Several processes, or DeepSpeed and FSDP, by `accelerate launch`, with the words and the files that TRL's scripts take."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


ACCELERATE_CONFIG = "--accelerate_config"
# What launchers set in the processes that they start
_OF_A_LAUNCHER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launch_flags() -> list[str]:
    """The flags of `accelerate launch`, and TRL's name for a file of them."""
    from accelerate.commands.launch import launch_command_parser

    return [ACCELERATE_CONFIG, *launch_command_parser()._option_string_actions]


def needs_launch(launch_words: Sequence[str]) -> bool:
    """
    Whether a run is to be started by accelerate rather than in this process: it was asked for, accelerate was
    configured on this machine, or there are several accelerators. In a process of a launcher it never is.
    """
    import torch
    from accelerate.commands.config import default_config_file

    if any(name in os.environ for name in _OF_A_LAUNCHER):
        return False
    return bool(launch_words) or os.path.isfile(default_config_file) or torch.accelerator.device_count() > 1


def launch(module: str, launch_words: Sequence[str], words: Sequence[str]) -> None:
    """
    Run a module under `accelerate launch`.

    Args:
        module (`str`):
            Name of the module.
        launch_words (`Sequence[str]`):
            Flags of `accelerate launch`; `--accelerate_config` takes a file or the name of a file that TRL ships.
        words (`Sequence[str]`):
            The words of the module.

    Raises:
        ValueError: there is no such file, or the flags do not go together.
        SystemExit: the run failed.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    # the processes find this very package, wherever it is
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    launch_words = resolve_accelerate_config_argument(list(launch_words))
    args = launch_command_parser().parse_args([*launch_words, "--module", module, *words])
    try:
        launch_command(args)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
