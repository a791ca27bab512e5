"""The table and the plot of `step_speed.py`."""

import json
import statistics
from pathlib import Path


MEBIBYTE = 2**20
BASELINE = "padded"


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


def verdicts(results: list[dict]) -> list[str]:
    """The ratios that the table is for, in words."""
    cells = {(result["system"], result["negatives"]): result for result in results}
    lines = []
    for row in _rows(results):
        if row["system"] == "ours" and "speedup" in row:
            text = f"K = {row['negatives']}: {row['speedup']:.1f}x faster than padded rows (token bound "
            text += f"{row['bound']:.1f}x), {row['memory']:.0%} of their memory"
            if ("pairs", row["negatives"]) in cells:
                pairs = cells["pairs", row["negatives"]]
                text += f", {_median(pairs) / _median(row):.1f}x faster than DPOTrainer over the pairs"
            lines.append(text + ".")
        elif row["system"] == "ours":
            padded = min((n for name, n in cells if name == BASELINE), default=None)
            if padded is not None:
                share = _median(row) / _median(cells[BASELINE, padded])
                lines.append(f"K = {row['negatives']}: {share:.2f} of the time of padded rows at K = {padded}.")
        elif row["system"] == "ours-ranking":
            count = row["negatives"] + 1
            lines.append(f"Ranking {count} candidates: {row['speedup']:.1f}x faster than {count} padded rows.")
    return lines


def plot(results: list[dict], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    systems = [name for name in dict.fromkeys(result["system"] for result in results) if "ranking" not in name]
    for system in systems:
        cells = sorted((r for r in results if r["system"] == system), key=lambda result: result["negatives"])
        negatives = [cell["negatives"] for cell in cells]
        axes[0].plot(negatives, [_median(cell) for cell in cells], marker="o", label=system)
        axes[1].plot(negatives, [cell["peak_bytes"] / MEBIBYTE for cell in cells], marker="o", label=system)
    ticks = sorted({result["negatives"] for result in results if "ranking" not in result["system"]})
    for axis, label in zip(axes, ("seconds per record", "peak memory above the model's own (MiB)"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="negatives K", ylabel=label)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(results: list[dict], machine: dict, folder: Path) -> str:
    """Write `step_speed.json`, `step_speed.md` and `step_speed.png`; the text is returned, too."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    text = "\n".join([format_table(results), "", *verdicts(results), "", facts])
    contents = json.dumps({"machine": machine, "results": results}, indent=1)
    (folder / "step_speed.json").write_text(contents, encoding="utf-8")
    (folder / "step_speed.md").write_text(text + "\n", encoding="utf-8")
    plot(results, folder / "step_speed.png", f"One training step ({machine['device']}, {machine['dtype']})")
    return text
