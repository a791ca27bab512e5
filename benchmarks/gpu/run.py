"""
Half an hour on a card: `python benchmarks/gpu/run.py --stage all --out results`. See README.md beside this file.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

STAGES = ("tests", "speed", "ranking", "train", "report")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/gpu"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="no cell is begun that might end later (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes", default="135M,1B,7B", help="models of the stages speed and ranking (default: %(default)s)"
    )
    parser.add_argument("--model", help="folder of the pretrained model of the stage train")
    parser.add_argument("--data", help="folder or zip of ml-latest-small, for the stage train")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny sizes on a CPU, to find mistakes before the half hour"
    )
    return parser.parse_args()


def tiny_model(out: Path) -> str:
    """A folder with a model and a tokenizer of letters, for the rehearsal."""
    from models import make_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = out / "tiny"
    if not folder.is_dir():
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(
            models.BPE({token: number for number, token in enumerate(["<end>", "<pad>", *letters])}, [])
        )
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
        make_model("tiny", "float32", "cpu").save_pretrained(folder)
    return str(folder)


def run_stage(stage: str, args: argparse.Namespace, device: str, deadline: float) -> None:
    from cells import Cells

    cells = Cells(args.out / f"{stage}.json", deadline)
    sizes = ["tiny"] if args.rehearse else args.sizes.split(",")
    if stage == "tests":
        import equality

        equality.run(cells, "tiny" if args.rehearse else "135M", device, args.rehearse)
    elif stage in ("speed", "ranking"):
        import speed

        (speed.run_steps if stage == "speed" else speed.run_ranking)(cells, sizes, device, args.rehearse)
    elif stage == "train":
        import training

        model = tiny_model(args.out) if args.rehearse else args.model
        if model is None:
            raise SystemExit("--model: pass the folder of the pretrained model.")
        training.run(cells, model, args.data, args.out, device, args.rehearse)
    else:
        import report

        report.write(args.out)


def main() -> None:
    deadline = time.monotonic() + 60 * parse_arguments().minutes
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import torch
    from cells import surroundings

    device = "cpu" if args.rehearse or not torch.cuda.is_available() else "cuda"
    if device == "cpu" and not args.rehearse:
        raise SystemExit("There is no GPU here. --rehearse tries all stages with tiny sizes on a CPU.")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "machine.json").write_text(json.dumps(surroundings(device), indent=1) + "\n")
    for stage in STAGES if args.stage == "all" else [args.stage]:
        print(f"Stage {stage}", flush=True)
        run_stage(stage, args, device, deadline)


if __name__ == "__main__":
    main()
