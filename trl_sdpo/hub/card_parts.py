"""What the cards of models and of data sets share: tables, citations, and nothing of the machine that wrote them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath, PureWindowsPath

from huggingface_hub import get_token

from .._markdown import markdown_table


TEMPLATES = Path(__file__).parent / "templates"
SDPO_CITATION = """\
@inproceedings{chen2024softmax,
    title        = {{On Softmax Direct Preference Optimization for Recommendation}},
    author       = {Yuxin Chen and Junfei Tan and An Zhang and Zhengyi Yang and Leheng Sheng and Enzhi Zhang and Xiang Wang and Tat-Seng Chua},
    year         = 2024,
    booktitle    = {Advances in Neural Information Processing Systems 37: Annual Conference on Neural Information Processing Systems 2024, NeurIPS 2024},
}"""
TRL_CITATION = """\
@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = {2020}
}"""
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown, with separators of thousands."""
    return "\n".join(markdown_table(list(header), [[_cell(value) for value in row] for row in rows]))


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").split())


def public_name(name: str | os.PathLike | None) -> str | None:
    """
    A name for a card.

    Args:
        name (`str` or `os.PathLike` or `None`):
            The id of a repository, or a path on this machine.

    Returns:
        `str` or `None`: The id as it is; of a path its last part alone, and nothing of the home directory itself.
    """
    if name is None:
        return None
    text = str(name)
    is_path = os.path.exists(text) or PureWindowsPath(text).drive or text[:1] in "/~.\\" or text.count("/") > 1
    if not is_path:
        return text
    path = Path(text).expanduser()
    if path.resolve() in (Path.home().resolve(), *Path.home().resolve().parents):
        return None
    return (PureWindowsPath(text) if "\\" in text else PurePath(os.path.abspath(path))).name or None


def without_private(text: str, tokens: Iterable[str | None] = ()) -> str:
    """
    Take out of a text what belongs to this machine alone.

    Args:
        text (`str`):
            A card.
        tokens (`Iterable[str | None]`, *optional*):
            Tokens of the Hub beside the one that is logged in with.

    Returns:
        `str`: The text with tokens as `[token]` and paths in the home directory as their last part.
    """
    for token in {*tokens, get_token()} - {None, ""}:
        text = text.replace(str(token), "[token]")
    text = _TOKEN.sub("[token]", text)
    for home in sorted(
        {str(Path.home()), str(Path.home().resolve()), os.environ.get("HOME", "")}, key=len, reverse=True
    ):
        if len(home) > 1:  # not the root of the file system
            text = re.sub(rf"{re.escape(home)}(?![\w-])(?:/[^\s'\"`)\]]*)?", _last_part, text)
    return text


def _last_part(match: re.Match) -> str:
    return public_name(match[0]) or "[home]"
