"""
The table of tested versions in README.md, which `.ci/run` writes from what each of its cells had installed.

    python .ci/tested_versions.py row SUITE            the row of the environment that runs this
    python .ci/tested_versions.py write README.md ROWS...   put the rows in place of the table
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path


LIBRARIES = ("trl", "transformers", "torch", "peft", "accelerate", "datasets", "numpy", "polars")
START, END = "<!-- tested versions: written by .ci/run -->", "<!-- end of tested versions -->"


def row(suite: str) -> str:
    # of 3.13.0+cpu and the like, the build is no matter of versions
    versions = [version(name).partition("+")[0] for name in LIBRARIES]
    return f"| {' | '.join([platform.python_version(), *versions, suite])} |"


def write(readme: Path, files: list[str]) -> None:
    rows = sorted({Path(file).read_text(encoding="utf-8").strip() for file in files})
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{readme} has no lines {START!r} and {END!r}")
    header = f"| {' | '.join(['Python', *LIBRARIES, 'tests'])} |"
    lines = [header, "|" + " --- |" * (len(LIBRARIES) + 2), *rows]
    readme.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "row":
        print(row(sys.argv[2]))
    else:
        write(Path(sys.argv[2]), sys.argv[3:])
