"""
What it takes to import `SoftmaxDPOTrainer`, beside `trl.DPOTrainer`, and until commands answer, beside `trl.DPOConfig`.

Each import runs in a process of its own, in turns, so that a change of the machine's load meets all of them. The first
round, which reads the files from disk, is not counted.

    python benchmarks/import_time.py [--rounds 7]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


PROGRAMS = {
    "DPOTrainer": "from trl import DPOTrainer",
    "SoftmaxDPOTrainer": "from trl_sdpo import SoftmaxDPOTrainer",
    "trl-sdpo --help": "import sys; from trl_sdpo.cli import main; main(['--help'])",
}


def seconds(program: str) -> float:
    """Seconds of a process that runs a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


# Words that are answered without training anything, each beside the import of TRL's configuration, in CPU seconds
COMMANDS = {
    "prepare --help": ["prepare", "--help"],
    "evaluate --help": ["evaluate", "--help"],
    "recommend --help": ["recommend", "--help"],
    "push --help": ["push", "--help"],
    "sft --help": ["sft", "--help"],
    "train --help": ["train", "--help"],
    "recommend, no such model": ["recommend", "--model_name_or_path", "./nothing", "--history", "a"],
    "run, no such file": ["run", "nothing.yaml"],
    "run, no such data": ["run", "CONFIG"],
}
CONFIG = """
prepare: {source: table, path: ./nothing.csv, output_dir: data}
sft: {dataset_name: daat, model_name_or_path: model, output_dir: sft}
"""


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare_commands(rounds: int) -> None:
    """Print the CPU seconds of each command, and their ratio to `from trl import DPOConfig` of the same round."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mistaken.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        commands = {
            name: [str(config) if word == "CONFIG" else word for word in words] for name, words in COMMANDS.items()
        }
        ratios: dict[str, list[float]] = {name: [] for name in commands}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            base = cpu_seconds([sys.executable, "-c", "from trl import DPOConfig"])
            for name, words in commands.items():
                taken = cpu_seconds([sys.executable, "-m", "trl_sdpo.cli", *words])
                seconds[name].append(taken)
                ratios[name].append(taken / base)
    for name in commands:
        print(
            f"{name:26} {statistics.median(seconds[name]):6.2f} CPU s, {statistics.median(ratios[name]):.2f} of "
            f"`from trl import DPOConfig` ({min(ratios[name]):.2f} to {max(ratios[name]):.2f}), n = {rounds}"
        )


AFTER = """
import time
from trl import DPOTrainer
start = time.process_time()
from trl_sdpo import SoftmaxDPOTrainer
print(time.process_time() - start)
"""


def seconds_after() -> float:
    """CPU seconds that `SoftmaxDPOTrainer` takes where `DPOTrainer` is imported already."""
    done = subprocess.run([sys.executable, "-c", AFTER], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=7, help="Rounds that count.")
    parser.add_argument("--commands", action="store_true", help="The commands alone.")
    args = parser.parse_args()
    rounds = args.rounds
    compare_commands(rounds)
    if args.commands:
        return
    times = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(rounds + 1)][1:]
    for name in PROGRAMS:
        values = [one[name] for one in times]
        print(f"{name:18} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f}), n = {rounds}")
    for text, combine in (("ratio", lambda a, b: a / b), ("difference in s", lambda a, b: a - b)):
        values = [combine(one["SoftmaxDPOTrainer"], one["DPOTrainer"]) for one in times]
        print(f"{text}, SoftmaxDPOTrainer to DPOTrainer: {statistics.median(values):.2f} ", end="")
        print(f"({min(values):.2f} to {max(values):.2f}), the median of the rounds")
    after = [seconds_after() for _ in range(min(rounds, 3))]
    print(f"in one process, after DPOTrainer: {statistics.median(after):.3f} CPU seconds more, n = {len(after)}")


if __name__ == "__main__":
    main()
