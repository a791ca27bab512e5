"""
How long it takes from the files of MovieLens-25M's size to finished records, against plain pandas.

    python benchmarks/prepare_speed.py                  # 25 million rows, 1 million records of 19 negatives
    python benchmarks/prepare_speed.py --only-small     # 2.5 million rows alone
    python benchmarks/prepare_speed.py --only-ours      # without pandas

The rows are made up, see synthetic_movielens.py. Every run is a process of its own, timed from the first byte of the
CSV to the last of the Parquet, report and leak probe included; imports and the making of the rows are not. pandas does
the same steps with the same number of records, in plain code: sets of what a user saw, a generator per record. "hard" draws
negatives from the neighbours of the history. The seconds of the processors, of all threads together, depend little on what
else a machine does; the seconds of the clock do.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from synthetic_movielens import ROWS, write_movielens


SMALL, LARGE = ROWS // 10, ROWS
HISTORY, MIN_HISTORY, NEGATIVES, SEED = 10, 3, 19, 0


def run_ours(folder: Path, records: int, output: Path, **more):
    """`prepare`, as a user calls it."""
    from trl_sdpo.recsys.records.preparation import prepare

    yield
    options = {"max_train_records": records, "max_validation_records": 1000, "max_test_records": 1000, **more}
    prepare("movielens", output, path=folder, seed=SEED, **options)


def run_hard(folder: Path, records: int, output: Path):
    """With negatives from the neighbours of the history."""
    yield from run_ours(folder, records, output, negatives="hard")


def run_pandas(folder: Path, records: int, output: Path):
    """The same steps in plain pandas."""
    import pandas as pd

    yield
    output.mkdir()
    events = pd.read_csv(folder / "ratings.csv")
    titles = pd.read_csv(folder / "movies.csv").set_index("movieId")["title"].to_dict()
    events = events.sort_values(["userId", "timestamp", "movieId"]).drop_duplicates(["userId", "movieId"])
    events = events.reset_index(drop=True)
    events["position"] = events.groupby("userId").cumcount()
    cuts = events["timestamp"].sort_values().iloc[[round(0.8 * len(events)), round(0.9 * len(events))]].tolist()
    events["split"] = np.select([events["timestamp"] < cut for cut in cuts], ["train", "validation"], "test")
    seen = events.groupby("userId")["movieId"].agg(set).to_dict()
    catalogue, items = events["movieId"].unique(), events["movieId"].to_numpy()
    for split, limit in (("train", records), ("validation", 1000), ("test", 1000)):
        targets = events[(events["split"] == split) & (events["position"] >= MIN_HISTORY)]
        targets = targets.sample(min(limit, len(targets)), random_state=SEED).sort_index()
        rows = [record(target, items, seen, catalogue, titles) for target in targets.itertuples()]
        pd.DataFrame(rows).to_parquet(output / f"{split}.parquet")


def record(target, items, seen, catalogue, titles) -> dict:
    """One record, as anybody would write it."""
    history = items[target.Index - min(HISTORY, target.position) : target.Index].tolist()
    generator = np.random.default_rng([SEED, target.userId, target.position])
    own, negatives = seen[target.userId], []
    while len(negatives) < NEGATIVES:
        for item in catalogue[generator.integers(len(catalogue), size=2 * NEGATIVES)].tolist():
            if item not in own and item not in negatives and len(negatives) < NEGATIVES:
                negatives.append(item)
    candidates = [target.movieId, *negatives]
    generator.shuffle(candidates)
    lines = "\n".join(titles[item] for item in history)
    return {
        "prompt": f"Movies in the order in which one user watched them:\n{lines}\n",
        "chosen": f"{titles[target.movieId]}\n",
        "rejected": [f"{titles[item]}\n" for item in negatives],
        "user_id": target.userId,
        "item_id": target.movieId,
        "rejected_item_ids": negatives,
        "history_item_ids": history,
        "candidates": [titles[item] for item in candidates],
        "timestamp": target.timestamp,
        "position": target.position,
    }


RUNS = {"prepare": run_ours, "hard": run_hard, "pandas": run_pandas}


def run_here(name: str, folder: Path, records: int) -> None:
    """Run in this process, and print the seconds and the peak of memory."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        steps = RUNS[name](folder, records, Path(place) / "records")
        next(steps)  # imports
        start, before = time.perf_counter(), time.process_time()
        next(steps, None)
        seconds, processor = time.perf_counter() - start, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": peak}))


def run_apart(name: str, folder: Path, records: int) -> dict:
    """Run in a process of its own."""
    command = [sys.executable, __file__, "--here", name, "--folder", str(folder), "--records", str(records)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=int, default=1_000_000, help="Records at 25 million rows, and a tenth at 2.5."
    )
    parser.add_argument("--only-small", action="store_true", help="2.5 million rows alone.")
    parser.add_argument("--only-ours", action="store_true", help="Without pandas.")
    parser.add_argument(
        "--folder", type=Path, help="Where rows are made, or left by an earlier run. Default: temporary."
    )
    parser.add_argument("--here", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        run_here(args.here, args.folder, args.records)
        return
    folder = args.folder or Path(tempfile.mkdtemp(prefix="prepare-speed."))
    try:
        report(folder, args.records, args.only_small, args.only_ours)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


def report(folder: Path, records: int, only_small: bool, only_ours: bool) -> None:
    """Make the rows that are not there, run, and print the table."""
    few = records // 10
    plan = [("prepare", SMALL, few), ("pandas", SMALL, few), ("prepare", SMALL, records), ("pandas", SMALL, records)]
    plan += [] if only_small else [("prepare", LARGE, records), ("hard", LARGE, records)]
    results = {}
    print(f"{os.cpu_count()} cores, numpy {np.__version__}\n")
    print("| | rows | records | seconds | processor seconds | peak GB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name, rows, count in plan:
        if only_ours and name == "pandas":
            continue
        place = folder / str(rows)
        if not (place / "movies.csv").is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_movielens(place, rows, SEED)
        result = results[name, rows, count] = run_apart(name, place, count)
        figures = f"{result['seconds']:.1f} | {result['processor']:.1f} | {result['peak']:.2f}"
        print(f"| {name} | {rows:,} | {count:,} | {figures} |", flush=True)
    print()
    for kind, unit in (("seconds", "the clock"), ("processor", "the processors")):
        ratios(results, kind, unit, records)


def ratios(results: dict, kind: str, unit: str, records: int) -> None:
    """Print what is how many times the other, by one of two clocks; what was not run is left out."""
    few = records // 10
    pairs = {
        f"pandas / prepare, {few:,} records of 2.5 million rows": (("pandas", SMALL, few), ("prepare", SMALL, few)),
        f"pandas / prepare, {records:,} records": (("pandas", SMALL, records), ("prepare", SMALL, records)),
        f"25 / 2.5 million rows, {records:,} records of both": (
            ("prepare", LARGE, records),
            ("prepare", SMALL, records),
        ),
        "25 / 2.5 million rows, with ten times the records": (("prepare", LARGE, records), ("prepare", SMALL, few)),
        "hard / uniform": (("hard", LARGE, records), ("prepare", LARGE, records)),
    }
    for words, (over, under) in pairs.items():
        if over in results and under in results:
            print(f"{words}: {results[over][kind] / results[under][kind]:.1f} times by {unit}.")


if __name__ == "__main__":
    main()
