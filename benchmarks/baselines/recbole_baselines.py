"""
Caser, and on request SASRec and GRU4Rec, as RecBole 1.2.1 has them, on the records of a prepared data set.

    trl-sdpo prepare movielens-100k --output data/ml-100k
    python benchmarks/baselines/recbole_baselines.py data/ml-100k --output scores

RecBole breaks on numpy 2, so the first run makes an environment of its own (recbole_requirements.txt); this script
needs nothing but Python outside of it. Every record for training is a row (history, target), the loss is RecBole's
cross-entropy over all items, and the epoch with the highest hr@1 on the validation records is taken. The scores of
validation and test go to `MODEL.SPLIT.parquet` in the output directory, for `trl_sdpo.recsys.read_scores`: a column
`scores`, a row per record, the target first; options, seconds and validation hr@1 to `MODEL.json`.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


RECBOLE = "recbole==1.2.1"
ENVIRONMENT = Path("~/.cache/trl_sdpo/environment-of-recbole-1.2.1").expanduser()
HISTORY_SIZE = 10
# RecBole calls pandas in ways that warn.
CHILD = {"PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
# What is searched on the validation records is set by --set; the rest is RecBole's default.
MODELS = {
    "Caser": {"learning_rate": 0.003, "dropout_prob": 0.2, "reg_weight": 1e-5, "nh": 16, "nv": 8},
    "SASRec": {"learning_rate": 0.001, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2},
    "GRU4Rec": {"learning_rate": 0.003, "hidden_size": 64, "dropout_prob": 0.2},
}


def main() -> None:
    """Go into the environment, then train and score every model that is asked for."""
    args = parse_arguments()
    if Path(sys.prefix) != args.environment.resolve():
        python = make_environment(args.environment.resolve())
        command = [python, __file__, *sys.argv[1:], "--environment", args.environment.resolve()]
        sys.exit(subprocess.run(command, env={**os.environ, **CHILD}).returncode)
    splits = {split: read_records(args.data, split) for split in ("train", "validation", "test")}
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        options = {**MODELS[name], **dict(args.set)}
        model, dataset, report = train(name, splits, args, options)
        for split in ("validation", "test"):
            scores = score(model, dataset, splits[split], report["known_users"])
            report[f"{split}_hr@1"] = hit_rate(scores)
            write_scores(scores, args.output / f"{name.lower()}.{split}.parquet")
        report["known_users"] = len(report["known_users"])
        text = json.dumps(report, indent=2) + "\n"
        (args.output / f"{name.lower()}.json").write_text(text)
        print(text, end="")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="What `trl-sdpo prepare` wrote.")
    parser.add_argument("--output", type=Path, required=True, help="Directory for the scores.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["Caser"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_epochs", type=int, default=40, help="Most epochs.")
    parser.add_argument("--patience", type=int, default=5, help="Epochs without a higher hr@1 before it stops.")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--set", nargs="*", type=parse_option, default=[], metavar="NAME=VALUE", help="Of RecBole.")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="Where it is made.")
    return parser.parse_args()


def parse_option(text: str) -> tuple[str, float | int | str]:
    """`name=value`, where a value is JSON if it can be."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def make_environment(place: Path) -> str:
    """The Python of an environment with RecBole, made where it is not there yet."""
    python = place / "bin" / "python"
    done = place / "complete"
    if not done.exists():
        print(f"Making an environment for {RECBOLE} in {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        requirements = Path(__file__).with_name("recbole_requirements.txt")
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", requirements], check=True)
        subprocess.run([*pip, "--no-deps", RECBOLE], check=True)
        done.touch()
    return str(python)


def read_records(folder: Path, split: str) -> dict[str, list]:
    """The ids of the records of a split, all as strings."""
    import polars as pl

    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    if not files:
        raise SystemExit(f"{folder}: no data/{split}-*.parquet. Make it with `trl-sdpo prepare`.")
    lists = ("history_item_ids", "rejected_item_ids")
    frame = pl.read_parquet(files, columns=["user_id", "item_id", *lists])
    frame = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String), pl.col(lists).cast(pl.List(pl.String)))
    return frame.to_dict(as_series=False)


def train(name: str, splits: dict, args: argparse.Namespace, options: dict):
    """Train RecBole's model by its own loss on its own batches, and stop by hr@1 of the validation records."""
    import torch
    from recbole.data import create_dataset
    from recbole.data.dataloader import TrainDataLoader
    from recbole.utils import get_model, init_seed
    from tqdm import tqdm

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_atomic_file(splits["train"], Path(folder))
        config = make_config(name, folder, args, options)
        init_seed(args.seed, True)
        dataset = create_dataset(config)
        batches = TrainDataLoader(config, dataset.build()[0], None, shuffle=True)
    model = get_model(name)(config, dataset)
    users = set(splits["train"]["user_id"])
    optimizer = torch.optim.Adam(model.parameters(), lr=options["learning_rate"])
    rates, best = [], None
    for _ in (progress := tqdm(range(args.num_epochs), desc=name, unit=" epochs")):
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            if not torch.isfinite(loss):
                raise SystemExit(f"{name}: the loss is {loss.item()}. Pass a smaller --set learning_rate=...")
            loss.backward()
            optimizer.step()
        rates.append(hit_rate(score(model, dataset, splits["validation"], users)))
        progress.set_postfix(loss=f"{loss.item():.3f}", hr=f"{rates[-1]:.3f}")
        if rates[-1] > max(rates[:-1], default=-1):
            best = copy.deepcopy(model.state_dict())
        elif len(rates) - 1 - rates.index(max(rates)) >= args.patience:
            break
    model.load_state_dict(best)
    report = {"model": name, "seed": args.seed, "options": options, "known_users": users}
    report |= {"num_epochs": 1 + rates.index(max(rates)), "seconds": round(time.perf_counter() - start, 1)}
    return model, dataset, report


def write_atomic_file(records: dict[str, list], folder: Path) -> None:
    """The training records in RecBole's own form."""
    place = folder / "records"
    place.mkdir()
    rows = zip(records["user_id"], records["history_item_ids"], records["item_id"], strict=True)
    with open(place / "records.train.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        file.writelines(f"{user}\t{' '.join(history)}\t{item}\n" for user, history, item in rows)


def make_config(name: str, folder: str, args: argparse.Namespace, options: dict):
    """RecBole's configuration, which also reads the command line unless that is hidden from it."""
    from recbole.config import Config

    fixed = {
        "data_path": folder,
        "benchmark_filename": ["train"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "MAX_ITEM_LIST_LENGTH": HISTORY_SIZE,
        "train_neg_sample_args": None,
        "train_batch_size": args.batch_size,
        "use_gpu": False,
        "seed": args.seed,
        "reproducibility": True,
    }
    sys.argv = sys.argv[:1]
    return Config(model=name, dataset="records", config_dict={**fixed, **options})


def score(model, dataset, records: dict[str, list], known_users: set[str]) -> list[list[float]]:
    """
    The model's scores of the candidates, the target first.

    Users who have no training record get the embedding that stands for none, and an item without one the lowest score
    of all for its history, as `trl_sdpo.recsys.baselines.sequential` has it.
    """
    import torch
    from recbole.data.interaction import Interaction

    items, users = (dataset.field2token_id[field] for field in ("item_id", "user_id"))
    model.eval()
    result = []
    for begin in range(0, len(records["item_id"]), 1024):
        some = slice(begin, begin + 1024)
        histories = [
            [items[item] for item in history if item in items][-HISTORY_SIZE:]
            for history in records["history_item_ids"][some]
        ]
        padded = [history + [0] * (HISTORY_SIZE - len(history)) for history in histories]
        batch = {
            "user_id": torch.tensor([users[u] if u in known_users else 0 for u in records["user_id"][some]]),
            "item_id_list": torch.tensor(padded),
            # RecBole reads the state at place length - 1, so an empty history is one of padding
            "item_length": torch.tensor([max(1, len(history)) for history in histories]),
        }
        with torch.no_grad():
            scores = model.full_sort_predict(Interaction(batch)).view(len(histories), -1)[:, 1:]
        lowest = scores.min(dim=1).values.tolist()
        rows = zip(records["item_id"][some], records["rejected_item_ids"][some], scores.tolist(), lowest, strict=True)
        for target, rejected, row, low in rows:
            result.append([row[items[item] - 1] if item in items else low for item in (target, *rejected)])
    return result


def hit_rate(scores: list[list[float]]) -> float:
    """hr@1, where a tie counts against the target."""
    return sum(row[0] > max(row[1:]) for row in scores) / len(scores)


def write_scores(scores: list[list[float]], path: Path) -> None:
    """As `trl_sdpo.recsys.write_scores`, which is not at hand in this environment."""
    import polars as pl

    stage = path.with_name(f".{path.name}.{os.getpid()}")
    pl.DataFrame({"scores": scores}, schema={"scores": pl.List(pl.Float64)}).write_parquet(stage)
    os.replace(stage, path)


if __name__ == "__main__":
    main()
