"""Names of a package that are imported when they are asked for, so that what needs no torch does not wait for it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, names_by_module: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """
    The `__getattr__` (PEP 562) of a package whose `names_by_module` are imported at their first use. A type checker sees
    them by the same imports under `TYPE_CHECKING`; a test compares the two.
    """
    modules = {name: module for module, names in names_by_module.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{modules[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
