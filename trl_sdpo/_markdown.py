"""Tables of reports and cards."""

import re
from collections.abc import Sequence


# numbers, intervals and tests, as reports write them
_NUMBERS = re.compile(r"(?:[\d.,%±+−()<=\s-]|\bto\b|\bp\b|\bn\b)*")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """
    A table in Markdown.

    Args:
        header (`Sequence[str]`):
            Names of the columns, as Markdown.
        rows (`Sequence[Sequence[str]]`):
            Cells, as Markdown. Columns after the first are aligned to the right where all of them hold numbers.

    Returns:
        `list[str]`: The lines.

    Example:
        ```python
        >>> markdown_table(["system", "hr@1"], [["SASRec", ".57"]])
        ['| system | hr@1 |', '| --- | ---: |', '| SASRec | .57 |']

        ```
    """
    numeric = [bool(rows) and all(_NUMBERS.fullmatch(row[column]) for row in rows) for column in range(len(header))]
    rule = ["---:" if number and column else "---" for column, number in enumerate(numeric)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
