"""
The API reference, from docstrings in the doc-builder form of Hugging Face.

Such docstrings are Markdown, which MyST reads as it is, but for their sections ("Args:"), cross-references
([`softmax_dpo_loss`]) and formulas. A page of `docs/api/` says by comments what stands where:

    <!-- api: trl_sdpo.recsys load_* -->

is replaced by the names of `trl_sdpo.recsys.__all__` that match one of the patterns, less those that an earlier comment
of the page took, so that a last comment with `*` leaves none out.
"""

import fnmatch
import importlib
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature


PACKAGES = ("trl_sdpo", "trl_sdpo.recsys", "trl_sdpo.evaluation", "trl_sdpo.pipeline")
SECTIONS = ("Args", "Parameters", "Returns", "Yields", "Raises", "Example", "Examples")
# Beyond so many, a dataclass has inherited most of its fields, which its parent documents.
MOST_FIELDS = 30

_COMMENT = re.compile(r"^<!-- api: (?P<package>\S+) (?P<patterns>.+) -->$", re.MULTILINE)
_SECTION = re.compile(rf"^(?P<name>{'|'.join(SECTIONS)}):$")
_REFERENCE = re.compile(r"\[`(?P<tilde>~?)(?P<name>[\w.]+)`\]")
_CODE_BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def to_markdown(docstring: str) -> str:
    """
    A docstring in doc-builder form as Markdown that MyST reads.

    Args:
        docstring (`str`):
            The docstring, without the indentation of the code.

    Returns:
        `str`: Its sections as lists under a bold name, its cross-references as roles, its formulas as MyST's.
    """
    text = "\n".join(_with_sections(docstring.splitlines()))
    parts = _CODE_BLOCK.split(text)  # every other part is code, which stays as it is
    return "".join(part if index % 2 else _with_roles(part) for index, part in enumerate(parts))


def _with_sections(lines: list[str]) -> list[str]:
    written, section, body = [], None, []
    for line in [*lines, None]:
        belongs = line is not None and (not line or line.startswith(" "))
        if section and belongs:
            body.append(line)
            continue
        if section:
            written += ["", f"**{section}**", "", *_section_body(section, body), ""]
            section, body = None, []
        if line is None:
            break
        if match := _SECTION.match(line):
            section = "Parameters" if match["name"] == "Args" else match["name"]
        else:
            written.append(line)
    return written


def _section_body(section: str, body: list[str]) -> list[str]:
    body = textwrap.dedent("\n".join(body)).strip("\n").splitlines()
    if section not in ("Parameters", "Raises"):
        # "`int`:" may stand on a line of its own, with the text indented below, which would be code in Markdown
        if body and body[0].endswith(":") and all(not line or line.startswith(" ") for line in body[1:]):
            return [body[0], *textwrap.dedent("\n".join(body[1:])).splitlines()]
        return body
    # entries: "name (`type`, *optional*):" or "ValueError: when", with what is indented below
    items = []
    for line in body:
        if line and not line.startswith(" "):
            name, colon, rest = line.partition(":") if section == "Raises" else _entry(line)
            items.append(f"- {_emphasised(name, section)}{colon}{rest}")
        else:
            items.append(line[2:] if line.startswith("  ") else line)
    return items


def _entry(line: str) -> tuple[str, str, str]:
    """The name of a parameter, and its type in parentheses with the colon behind."""
    name, space, rest = line.partition(" ")
    return name, space, rest


def _emphasised(name: str, section: str) -> str:
    return name if "`" in name else f"`{name}`" if section == "Raises" else f"**{name.replace('*', chr(92) + '*')}**"


def _with_roles(text: str) -> str:
    text = re.sub(r"^\$\$ (.+?) \$\$$", r"```{math}\n\1\n```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<![$`])\$([^$`\n]+)\$(?![$`])", r"{math}`\1`", text)
    text = re.sub(r"\\\\\( (.+?) \\\\\)", r"{math}`\1`", text, flags=re.DOTALL)
    return _REFERENCE.sub(_role, text)


def _role(match: re.Match) -> str:
    name = match["name"].rpartition(".")[2] if match["tilde"] else match["name"]
    package = _package_of(match["name"])
    return f"{{py:obj}}`~{package}.{name}`" if package else f"`{name}`"


def _package_of(name: str) -> str | None:
    """The package in whose reference a name stands."""
    return next((one for one in PACKAGES if name in importlib.import_module(one).__all__), None)


def describe(package: str, name: str) -> str:
    """
    The entry of a public name.

    Args:
        package (`str`):
            The package that exports it.
        name (`str`):
            The name.

    Returns:
        `str`: A directive of Sphinx's Python domain, in Markdown.
    """
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value):
        text = to_markdown(inspect.getdoc(value) or "")
        return _directive("class", f"{name}{_signature(value)}", f"{text}\n\n{_methods(value)}", package)
    if callable(value):
        return _directive("function", f"{name}{_signature(value)}", to_markdown(inspect.getdoc(value) or ""), package)
    return _directive("data", name, _constant(value), package)


def _constant(value: Any) -> str:
    """A constant itself, or the names of what a collection holds."""
    if isinstance(value, dict | tuple | list):
        return f"A {type(value).__name__} of " + ", ".join(f"`{getattr(one, 'name', one)}`" for one in value) + "."
    return f"`{value!r}`"


def _methods(cls: type) -> str:
    """The methods and properties that a class documents itself, or a base of it in its own distribution."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == cls.__module__.partition(".")[0]]
    members = {name: member for base in reversed(own) for name, member in vars(base).items()}
    entries = []
    for name, member in members.items():
        function = getattr(member, "__func__", member)  # of a class method
        if name.startswith("_") or not (inspect.isfunction(function) or isinstance(member, property)):
            continue
        if not function.__doc__:
            continue
        text = to_markdown(inspect.getdoc(function))
        if isinstance(member, property):
            entries.append(_directive("property", name, text))
        else:
            options = ":classmethod:\n" if isinstance(member, classmethod) else ""
            entries.append(_directive("method", f"{name}{_signature(getattr(cls, name))}", text, options=options))
    return "\n\n".join(entries)


def _directive(kind: str, signature: str, body: str, package: str | None = None, options: str = "") -> str:
    options += f":module: {package}\n" if package else ""
    fence = "`" * (8 if package else 6)  # longer than those within
    return f"{fence}{{py:{kind}}} {signature}\n{options}\n{body.strip()}\n{fence}"


def _signature(value: Any) -> str:
    """Names and defaults; the types stand in the docstring."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return ""  # raised here, and made by nobody else
    signature = inspect.signature(value)
    parameters = [one for name, one in signature.parameters.items() if name != "self"]
    if inspect.isclass(value) and len(parameters) > MOST_FIELDS:
        own = {name: one for name, one in signature.parameters.items() if name in value.__annotations__}
        parameters = [*own.values(), inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    plain = (bool, int, float, str, tuple, list, dict, type(None))
    shown = [
        one
        if one.default is inspect.Parameter.empty or isinstance(one.default, plain)
        else one.replace(default=inspect.Parameter.empty if one.kind is one.POSITIONAL_ONLY else ...)
        for one in parameters
    ]
    shown = [one.replace(annotation=inspect.Parameter.empty) for one in shown]
    text = stringify_signature(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))
    return text.replace("Ellipsis", "...")


def fill_in(text: str) -> str:
    """
    Replace the comments of a page by the entries of the names that they ask for.

    Args:
        text (`str`):
            The page.

    Returns:
        `str`: The page with the entries.
    """
    taken = set()

    def entries(comment: re.Match) -> str:
        names = importlib.import_module(comment["package"]).__all__
        wanted = [
            name
            for pattern in comment["patterns"].split()
            for name in names
            if fnmatch.fnmatchcase(name, pattern) and name not in taken and not taken.add(name)
        ]
        return "\n\n".join(describe(comment["package"], name) for name in wanted)

    return _COMMENT.sub(entries, text)


def _on_source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname.startswith("api/"):
        source[0] = fill_in(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
