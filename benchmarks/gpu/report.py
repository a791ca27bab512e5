"""Stage `report`: the page docs/gpu.md is made of, out of the JSON of the other stages."""

import json
from pathlib import Path


def write(out: Path) -> Path:
    """Write `gpu.md` into the folder of the results."""
    machine = json.loads((out / "machine.json").read_text())
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    parts = [f"# On a GPU\n\n{machine['device']}, Python {machine['python']}, {versions}.\n"]
    for stage, make in (("tests", _tests), ("speed", _speed), ("ranking", _speed), ("train", _training)):
        path = out / f"{stage}.json"
        if path.is_file():
            parts.append(make(stage, json.loads(path.read_text())))
    page = out / "gpu.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    print(page)
    return page


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _tests(stage: str, results: dict) -> str:
    rows = [
        [name, "error" if "error" in one else "passed" if one["passed"] else "FAILED", one.get("error") or f"{one['difference']:.2g}", f"{one.get('tolerance', 0):g}"]
        for name, one in results.items()
    ]  # fmt: skip
    passed = sum(one.get("passed", False) for one in results.values())
    head = ["what", "result", "largest difference of a loss, nats", "tolerance"]
    return f"## Equal results\n\n{passed} of {len(results)} passed.\n\n{_table(head, rows)}"


def _speed(stage: str, results: dict) -> str:
    rows = []
    for name, one in results.items():
        base = results.get(f"{name.rsplit(', ', 1)[0]}, padded rows") or results.get(
            f"{name.rsplit(', ', 1)[0]}, a row for each candidate"
        )
        ratio = f"{base['seconds'] / one['seconds']:.1f}" if base and "seconds" in base and "seconds" in one else ""
        seconds = (
            f"{one['seconds']:.3f} ({one['least']:.3f} to {one['most']:.3f})"
            if "seconds" in one
            else one["error"][:80]
        )
        rows.append(
            [
                name,
                seconds,
                ratio,
                str(one.get("peak_mib", "")),
                str(one.get("padded_tokens_per_second", "")),
                str(one.get("share_of_peak", "")),
            ]
        )
    head = [
        "what",
        "seconds, median and range",
        "against padded rows",
        "peak MiB",
        "padded tokens/s",
        "share of the card's peak",
    ]
    title = "A step of two records" if stage == "speed" else "Ranking and search"
    return f"## {title}\n\n{_table(head, rows)}"


def _training(stage: str, results: dict) -> str:
    rows = []
    for name, one in results.items():
        if name.endswith("ranking") and "hr@1" in one:
            low, high = one["interval"]
            rows.append(
                [
                    name.removesuffix(", ranking"),
                    f"{one['hr@1']:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{one['by_user']:.3f}",
                    f"{one['records']} of {one['users']}",
                ]
            )
    head = ["model", "hr@1", "95% interval over users", "mean of users", "records of users"]
    return f"## Training\n\n{_table(head, rows)}"
