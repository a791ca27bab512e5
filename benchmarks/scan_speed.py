"""
How long readers take for 25 million rows, against another checkout of this repository in the same run.

    git worktree add ../before COMMIT
    python benchmarks/scan_speed.py --against ../before        # 25 million rows
    python benchmarks/scan_speed.py --against ../before --rows 2500000 --repeats 5

The rows are made up, see synthetic_movielens.py. Every run is a process of its own; the two checkouts take turns, so that
both meet the same noise. Imports are not counted. Ratios are of the fastest runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic_movielens import ROWS, write_movielens


HERE = Path(__file__).resolve().parents[1]


def read_table(folder: Path):
    """The csv of ratings as any table: four columns of four."""
    from trl_sdpo.recsys import load_table

    yield
    options = {"user": "userId", "item": "movieId", "timestamp": "timestamp", "rating": "rating"}
    load_table(folder / "ratings.csv", folder / "movies.csv", title="title", **options)


def read_columns(folder: Path):
    """Three columns of four."""
    from trl_sdpo.recsys import load_table

    yield
    load_table(folder / "ratings.csv", user="userId", item="movieId", timestamp="timestamp")


def read_movielens(folder: Path):
    """The publisher's files by their own loader."""
    from trl_sdpo.recsys import load_movielens

    yield
    load_movielens(folder)


READERS = {"load_table": read_table, "load_table, three columns": read_columns, "load_movielens": read_movielens}


def run_here(name: str, folder: Path) -> None:
    """Run in this process, and print the seconds."""
    steps = READERS[name](folder)
    next(steps)
    start = time.perf_counter()
    next(steps, None)
    print(json.dumps(time.perf_counter() - start))


def run_apart(name: str, folder: Path, checkout: Path) -> float:
    """Run with the package of a checkout, in a process of its own."""
    command = [sys.executable, __file__, "--here", name, "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="Another checkout. Needed.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where rows are made, or left by an earlier run.")
    parser.add_argument("--here", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        run_here(args.here, args.folder)
        return
    if args.against is None or not (args.against / "trl_sdpo").is_dir():
        parser.error("--against: pass the directory of another checkout")
    with tempfile.TemporaryDirectory(prefix="scan-speed.") as temporary:
        report(args, args.folder or Path(temporary))


def report(args: argparse.Namespace, folder: Path) -> None:
    """Make the rows that are not there, run, and print the table."""
    if not (folder / "movies.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_movielens(folder, args.rows, 0)
    print(f"{args.rows:,} rows, {os.cpu_count()} cores, {args.repeats} runs each\n")
    print("| | there, seconds | here, seconds | ratio |\n| --- | ---: | ---: | ---: |", flush=True)
    for name in READERS:
        runs = [(run_apart(name, folder, args.against), run_apart(name, folder, HERE)) for _ in range(args.repeats)]
        there, here = (min(times) for times in zip(*runs, strict=True))
        print(f"| {name} | {there:.2f} | {here:.2f} | {here / there:.2f} |", flush=True)


if __name__ == "__main__":
    main()
