"""
What a training step costs, against what TRL's layout costs: time, memory, and the bound that the token counts set.

    python benchmarks/step_speed.py                 # the whole table, about 10 minutes on two cores
    python benchmarks/step_speed.py --negatives 3   # one column
    python benchmarks/step_speed.py --device cuda --dtype bfloat16 --negatives 3,15,63,255 --systems ours,ours-flex,padded

A step is the forward of the reference, and the forward and backward of the policy: SmolLM2-135M with LoRA (r = 16, all
linear layers), prompts of MovieLens-100k that list 20 candidates, no gradient checkpointing. It takes two records;
seconds and tokens are given per record, and memory is the peak of a step with one record. The systems, each in a process
of its own, take turns on the same records:

- `ours`: `SoftmaxDPOTrainer`, its collator and its loss;
- `padded`: 1 + K padded rows in the layout of TRL (prompt and completion, right-padded) through TRL's own fused LM head,
  and the same loss: built here, of nothing but TRL. 16 rows at a time, as more would not fit 24 GiB;
- `pairs`: `trl.DPOTrainer` over the K pairs of each record, eight pairs at a time, which is what TRL offers today.

The token bound is tokens of `padded` over tokens of `ours`: how much faster a step would be if it cost the same per
token. Ranking is one forward without gradients for the 20 candidates of a record.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step_speed_systems import RECORDS_OF_A_STEP, SYSTEMS, load_groups

from trl_sdpo.files import write_text


ANSWER = "step_speed:"
BASELINE, MEBIBYTE = "padded", 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--negatives", default="3,15,63", help="K, several with commas (default: %(default)s)")
    parser.add_argument(
        "--systems",
        default="ours,padded,pairs,ranking",
        help=f"of ranking, {', '.join(SYSTEMS)}",
    )
    parser.add_argument("--padded-limit", type=int, default=15, help="largest K of padded (default: %(default)s)")
    parser.add_argument("--pairs-limit", type=int, default=3, help="largest K of pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps measured (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of records and LoRA (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", help="MovieLens-100k, if it is on disk")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_speed"), help="folder of the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a child: system:K
    return parser.parse_args()


class PeakMemory:
    """Bytes above what is held now: of this process (its resident set) or of the accelerator."""

    def __init__(self, device: str):
        self.device = device
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self.before = self._resident("VmRSS")

    @staticmethod
    def _resident(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only.")

    def peak(self) -> int:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() - self.before
        return self._resident("VmHWM") - self.before


def serve(args: argparse.Namespace) -> None:
    """In a child process: tell the peak of memory, then run one step for each line of the input, and tell its seconds."""
    system, negatives = args.one.split(":")
    with tempfile.TemporaryDirectory() as folder:
        model, (warm_up, *steps) = SYSTEMS[system](args, load_groups(args, int(negatives)), folder, system)
        for param in model.parameters():
            param.data.sum()  # weights mapped from a file are in memory only when they have been read
        memory = PeakMemory(args.device)
        warm_up[0]()
        print(ANSWER, json.dumps({"peak": memory.peak(), "tokens": [tokens for _, tokens in steps]}), flush=True)
        for step, _ in steps:
            sys.stdin.readline()
            start = time.perf_counter()
            step()
            if args.device == "cuda":
                import torch

                torch.cuda.synchronize()
            print(ANSWER, time.perf_counter() - start, flush=True)


class Child:
    """A process with one system in it, which computes only when it is told to."""

    def __init__(self, args: argparse.Namespace, system: str, negatives: int, log: Path):
        self.name, self.log = f"{system} with K = {negatives}", log
        command = [sys.executable, __file__, "--one", f"{system}:{negatives}"]
        for name in ("steps", "seed", "device", "dtype", "model", "data"):
            if getattr(args, name) is not None:
                command += [f"--{name}", str(getattr(args, name))]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def answer(self):
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self.name} failed:\n{self.log.read_text()[-4000:]}")

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def compare(args: argparse.Namespace, systems: list[str], negatives: int, progress) -> list[dict]:
    """
    Seconds and memory of several systems. They take turns step by step, so that a slow minute of the machine does
    not fall on one of them alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        children, results = {}, {}
        for system in systems:
            progress.set_description(f"{system}, K = {negatives}")
            children[system] = Child(args, system, negatives, Path(folder, f"{system}.log"))
            size = 1 if system.endswith("-ranking") else RECORDS_OF_A_STEP
            answer = children[system].answer()  # loaded and warm, before the next one starts
            results[system] = {
                "system": system,
                "negatives": negatives,
                "records_of_a_step": size,
                "tokens": sum(answer["tokens"]) / len(answer["tokens"]) / size,
                "peak_bytes": answer["peak"],
                "seconds": [],
            }
        for _ in range(args.steps):
            for system, child in children.items():
                results[system]["seconds"].append(child.step() / results[system]["records_of_a_step"])
                progress.update()
    return list(results.values())


def _median(result: dict) -> float:
    return statistics.median(result["seconds"])


def _spread(result: dict) -> str:
    """The range over the steps, whose records differ in length."""
    return f"{min(result['seconds']):.2f} to {max(result['seconds']):.2f}"


def _rows(results: list[dict]) -> list[dict]:
    """Each cell with what it is relative to the padded rows of the same K."""
    cells = {(result["system"], result["negatives"]): result for result in results}
    rows = []
    for (system, negatives), result in cells.items():
        ranking = system.endswith("-ranking")
        padded = cells.get((f"{BASELINE}-ranking" if ranking else BASELINE, negatives))
        row = {"system": system, "negatives": negatives, **result}
        if padded is not None:
            # by step, since both saw the same ones: a slow minute of the machine then counts once
            ratios = [theirs / ours for theirs, ours in zip(padded["seconds"], result["seconds"], strict=True)]
            row |= {
                "speedup": statistics.median(ratios),
                "bound": padded["tokens"] / result["tokens"],
                "memory": result["peak_bytes"] / padded["peak_bytes"],
            }
        rows.append(row)
    return rows


def format_table(results: list[dict]) -> str:
    lines = [
        "| system | K | tokens | s / record | range | x padded | token bound | peak MiB | of padded |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _rows(results):
        relative = ("-", "-", "-")
        if "speedup" in row:
            relative = (f"{row['speedup']:.1f}", f"{row['bound']:.1f}", f"{row['memory']:.0%}")
        cells = (
            *(row["system"], row["negatives"], f"{row['tokens']:.0f}", f"{_median(row):.2f}", _spread(row)),
            *(relative[0], relative[1], f"{row['peak_bytes'] / MEBIBYTE:.0f}", relative[2]),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def write_report(results: list[dict], machine: dict, folder: Path) -> str:
    """Write `step_speed.json` and `step_speed.md`; the text is returned, too."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{format_table(results)}\n\n{', '.join(f'{name} {value}' for name, value in machine.items())}"
    write_text(folder / "step_speed.json", json.dumps({"machine": machine, "results": results}, indent=1))
    write_text(folder / "step_speed.md", text + "\n")
    return text


def machine(args: argparse.Namespace) -> dict:
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "dtype": args.dtype,
        "seed": args.seed,
        "steps": args.steps,
        **{module.__name__: module.__version__ for module in (torch, transformers, trl)},
    }


def main() -> None:
    args = parse_arguments()
    if args.one:
        serve(args)
        return
    from tqdm import tqdm

    systems = args.systems.split(",")
    limits = {"padded": args.padded_limit, "pairs": args.pairs_limit}
    groups = [
        ([name for name in systems if name in SYSTEMS and negatives <= limits.get(name, negatives)], negatives)
        for negatives in map(int, args.negatives.split(","))
    ]
    if "ranking" in systems:
        groups.append((["ours-ranking", "padded-ranking"], 19))
    results = []
    with tqdm(total=args.steps * sum(len(systems) for systems, _ in groups), unit=" steps") as progress:
        for systems, negatives in groups:
            results += compare(args, systems, negatives, progress)
    print(write_report(results, machine(args), args.output))


if __name__ == "__main__":
    main()
