"""Settings of `python -m sphinx -W -b html docs build/docs`."""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]

from pygments.lexers.special import TextLexer  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import trl_sdpo  # noqa: E402


project = "trl_sdpo"
author = "the authors of trl_sdpo"
release = trl_sdpo.__version__

extensions = ["myst_parser", "sphinx.ext.mathjax", "api_reference", "pages"]
myst_enable_extensions = ["alert", "colon_fence", "deflist"]
# links to headings, as GitHub makes them
myst_heading_anchors = 4
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]
# The Python domain looks for what a docstring calls by its name, "Interactions", in the module of the entry.
add_module_names = False
python_maximum_signature_line_length = 100
default_role = None
smartquotes = False

html_theme = "furo"
html_title = f"trl_sdpo {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Languages that Pygments does not know, which GitHub does."""
    for language in ("csv", "jsonl"):
        app.add_lexer(language, TextLexer)
