"""
The table of tested versions in README.md, which `.ci/run` writes from what each of its cells had installed.

    python .ci/tested_versions.py row CELL SUITE            the row of the environment that runs this
    python .ci/tested_versions.py write README.md FILES...  the rows of these cells, in place of those that they had
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path


LIBRARIES = ("trl", "transformers", "torch", "peft", "accelerate", "datasets", "huggingface_hub", "numpy", "polars")
CELLS = ("pinned", "oldest", "newest", "py312", "py313")  # in the order of the table
START, END = "<!-- tested versions: written by .ci/run -->", "<!-- end of tested versions -->"


def row(cell: str, suite: str) -> str:
    # of 3.13.0+cpu and the like, the build is no matter of versions
    versions = [version(name).partition("+")[0] for name in LIBRARIES]
    return f"| {' | '.join([cell, platform.python_version(), *versions, suite])} |"


def table(text: str) -> dict[str, str]:
    """The rows of the table in a README, by cell."""
    block = text.partition(START)[2].partition(END)[0]
    lines = [line for line in block.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in lines[2:]}


def write(readme: Path, files: list[str]) -> None:
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{readme} has no lines {START!r} and {END!r}")
    rows = table(text)
    for file in map(Path, files):
        rows[file.stem] = file.read_text(encoding="utf-8").strip()
    header = f"| {' | '.join(['cell', 'Python', *LIBRARIES, 'tests'])} |"
    lines = [header, "|" + " --- |" * (len(LIBRARIES) + 3), *(rows[cell] for cell in CELLS if cell in rows)]
    readme.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "row":
        print(row(*sys.argv[2:]))
    else:
        write(Path(sys.argv[2]), [file for file in sys.argv[3:] if Path(file).is_file()])
