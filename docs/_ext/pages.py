"""
What lets the same Markdown be read on GitHub and built here.

The map in `index.md` is a list of links under headings, of which this makes the toctrees; links to the README, which lies
outside of `docs/`, lead to the page that includes it.
"""

import re

from sphinx.application import Sphinx


README = "readme"
_SECTION = re.compile(r"^## (?P<title>.+?)$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<page>[\w/-]+)\.md\)", re.MULTILINE)


def toctrees(index: str) -> str:
    """
    The toctrees of a map: one for each section that lists pages.

    Args:
        index (`str`):
            The page.

    Returns:
        `str`: Directives, hidden in the page, that its navigation is made of.
    """
    parts = []
    for section in _SECTION.finditer(index):
        if pages := [f"{item['title']} <{item['page']}>" for item in _ITEM.finditer(section["body"])]:
            parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {section['title']}", "", *pages, "```"]))
    return "\n\n".join(parts)


def _on_source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "index":
        source[0] += "\n" + toctrees(source[0])
    to_root = "../" * docname.count("/")
    source[0] = re.sub(r"\]\((?:\.\./)+README\.md", f"]({to_root}{README}.md", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
