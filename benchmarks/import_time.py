"""
What it takes to import `SoftmaxDPOTrainer`, beside `trl.DPOTrainer`, and to print `trl-sdpo --help`.

Each import runs in a process of its own, in turns, so that a change of the machine's load meets all of them. The first
round, which reads the files from disk, is not counted.

    python benchmarks/import_time.py [--rounds 7]
"""

import argparse
import statistics
import subprocess
import sys
import time


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
    rounds = parser.parse_args().rounds
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
