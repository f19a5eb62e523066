"""Names of a package that are imported at first use, so that importing the package costs nothing (PEP 562)."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.resources import files
from typing import Any


def stated(package: str) -> dict[str, str]:
    """Return the names that a package imports for type checkers alone -> the modules that hold them.

    The lines `from module import Name as Name` under its `if TYPE_CHECKING:` are the one list, for type checkers and
    for the running process: they are read from the package's source, and nothing is imported.
    """
    source = files(package).joinpath("__init__.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    found |= {name.asname or name.name: line.module for name in line.names}
    return found


def late(package: str, present: Iterable[str] = ()) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` over the names that are `stated` in it.

    Args:
        package: its `__name__`.
        present: further names that the package holds already.
    """
    modules = stated(package)

    def getter(attribute: str) -> Any:
        if attribute in modules:
            return getattr(import_module(modules[attribute]), attribute)
        raise AttributeError(f"module {package!r} has no attribute {attribute!r}")

    return getter, lambda: sorted({*present, *modules})
