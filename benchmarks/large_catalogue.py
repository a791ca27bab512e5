"""
Time and memory of a recommender with millions of items.

    python benchmarks/large_catalogue.py                        # 2 million items: loading within 10 s and 1 GB
    python benchmarks/large_catalogue.py --items 100000 --folder outputs/large

Items are made up, the model is an untrained Llama of 1 million parameters: what is measured is the catalogue. Each of
these runs in a process of its own, and says its seconds and the most memory that it had (`ru_maxrss`), imports included:
loading and ranking 20 candidates; the first search, which makes the trie; a search by a later process, which finds it;
and, for comparison, loading the same catalogue as JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


WORDS = [
    "River",
    "Hotel",
    "Train",
    "Summer",
    "Light",
    "Mile",
    "Door",
    "Garden",
    "Letter",
    "Night",
    "Island",
    "Witness",
    "Song",
    "Mirror",
    "Harbor",
    "Road",
]
STEPS = ("load", "first_search", "later_search", "load_json")


def make(folder: Path, items: int) -> None:
    """A model with its catalogue, in both forms."""
    from trl_sdpo import Catalogue, RecommenderConfig, save_recommender_files
    from trl_sdpo.pipeline import build_small_llama, train_title_tokenizer
    from trl_sdpo.recsys import get_template
    from trl_sdpo.recsys.records.catalogue import files

    def title(number: int) -> str:
        names = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(5)]
        return f"The {' '.join(names)} {number // len(WORDS) ** 5 + 1} ({1950 + number * 7 % 70})"

    titles = [title(number * 7_919 % max(items, len(WORDS) ** 5)) for number in range(items)]
    catalogue = Catalogue(
        [f"B{number:09d}" for number in range(items)], titles, [number % 50 for number in range(items)]
    )
    tokenizer = train_title_tokenizer(titles[:20_000], ["This user has watched", ". Next:"], 2048)
    model = build_small_llama(tokenizer, hidden_size=128, seed=0)
    for name, fewest in (("parquet", 1), ("json", items + 1)):
        files.PARQUET_FROM = fewest
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        save_recommender_files(folder / name, RecommenderConfig([get_template("watched")]), catalogue)


def measure(step: str, folder: Path) -> dict:
    """One step; what this process needed for it."""
    began = time.perf_counter()
    from trl_sdpo import Recommender

    imported, cpu = time.perf_counter(), time.process_time()
    recommender = Recommender.from_pretrained(folder / ("json" if step == "load_json" else "parquet"), device="cpu")
    loaded, cpu = time.perf_counter(), time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"imports_s": round(imported - began, 2), "load_s": round(loaded - imported, 2), "load_cpu_s": round(cpu, 2)}
    row["load_mb"] = memory // 1024
    titles = recommender.catalogue.titles
    if step.endswith("search"):
        found = recommender.recommend(titles[:5])
        row |= {"found": len(found), "search_s": round(time.perf_counter() - loaded, 2)}
    else:
        recommender.recommend(titles[:5], titles[100:120])
        row["rank_20_s"] = round(time.perf_counter() - loaded, 2)
    return {"step": step, **row, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="where to; by default a temporary folder")
    parser.add_argument("--step", choices=["make", *STEPS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "make":
        return make(arguments.folder, arguments.items)
    if arguments.step:
        return print(json.dumps(measure(arguments.step, arguments.folder)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for step in ("make", *STEPS):
            words = [
                sys.executable,
                __file__,
                "--items",
                str(arguments.items),
                "--folder",
                str(folder),
                "--step",
                step,
            ]
            subprocess.run(words, check=True)
        sizes = {path.name: path.stat().st_size >> 20 for path in folder.glob("*/*") if "catalogue" in path.name}
        sizes |= {path.name: path.stat().st_size >> 20 for path in folder.glob("*/title_trie*")}
        print(json.dumps({"items": arguments.items, "mb_on_disk": sizes}))


if __name__ == "__main__":
    main()
