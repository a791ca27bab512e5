"""The documentation builds to HTML without a warning, with every public name and every page in it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import trl_sdpo
import trl_sdpo.recsys


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?://|mailto:)(?P<path>[^)#\s]*)(#(?P<anchor>[^)\s]+))?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # -W: a warning is an error; --keep-going: all of them are told
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    done = subprocess.run([*command, str(DOCS), str(folder / "html")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


class Anchors(HTMLParser):
    """The ids of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}


@pytest.mark.parametrize(("package", "page"), [(trl_sdpo, "trl_sdpo"), (trl_sdpo.recsys, "recsys")])
def test_every_public_name_is_in_the_reference(package, page, site):
    text = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
    missing = {f"{package.__name__}.{name}" for name in package.__all__} - Anchors(text).ids
    assert not missing, f"docs/api/{page}.md has no place for {missing}"


def test_docstrings_are_shown_as_they_are_meant(site):
    text = (site / "api" / "trl_sdpo.html").read_text(encoding="utf-8")
    assert '<a class="reference internal" href="#trl_sdpo.SoftmaxDPOConfig"' in text  # [`SoftmaxDPOConfig`]
    assert 'href="https://huggingface.co/papers/2406.09215"' in text  # [text](url)
    assert '<div class="math' in text  # $$ ... $$
    assert '<div class="admonition note">' in text  # > [!NOTE]
    assert '<div class="highlight-python' in text  # ```python
    assert "<strong>Parameters</strong>" in text  # Args:
    assert "<li><p><strong>num_negatives</strong> (" in text
    for left_over in ("Args:", "[`", "[!NOTE]", "**options", "```", "\\\\("):
        assert left_over not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL), left_over


def test_links_lead_somewhere_on_github_too():
    """Sphinx follows those between its pages; README.md and files of the repository are not among them."""
    broken = []
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for link in LINK.finditer(re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)):
            target = (page.parent / link["path"]) if link["path"] else page
            if not target.exists() or (link["anchor"] and link["anchor"] not in headings(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link[0]}")
    assert not broken


def headings(page):
    """The anchors that GitHub makes of the headings of a page."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_every_page_is_on_the_map():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    missing = {page for page in pages if f"]({page})" not in index}
    assert not missing, f"docs/index.md does not link to {missing}"


def test_the_map_is_the_navigation(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    tree = text[text.index('class="sidebar-tree"') :]
    order = [tree.index(f'href="{page}.html"') for page in ("readme", "quickstart", "losses", "api/trl_sdpo")]
    assert order == sorted(order)
    assert "Quick start</a>" in tree
