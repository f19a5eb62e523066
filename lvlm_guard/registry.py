"""Names that resolve late: those of a registry, and those of a package that are imported at first use (PEP 562).

A registry is the only list of names: command-line choices, tables and tests read it. What is built in is listed as
"module:attribute", the rest comes from entry points. Nothing is imported before a name is asked for, so listing the
names, and importing a package of `late` ones, costs no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

from lvlm_guard.errors import UnknownNameError, did_you_mean


class Registry:
    """Named things of one kind, built in or brought by another package.

    Args:
        kind: what a name stands for, used in messages: "method", "matcher", "family".
        group: the entry-point group in which other packages register theirs.
        builtin: name to "module:attribute".
        refused: name to why there is none of this name, for those that users ask for.
    """

    def __init__(
        self, kind: str, group: str, builtin: Mapping[str, str], refused: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self._refused = refused or {}
        self.group = group
        self._builtin = dict(builtin)

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """Return every known name, built-in ones first."""
        return [*self._builtin, *(name for name in sorted(self._found) if name not in self._builtin)]

    def where(self, name: str) -> str:
        """Return "module:attribute" of a name; raises `UnknownNameError`."""
        if name in self._builtin:
            return self._builtin[name]
        if name in self._found:
            return self._found[name].value
        if name in self._refused:
            raise UnknownNameError(f"There is no {self.kind} {name!r}: {self._refused[name]}")
        raise UnknownNameError(
            f"No {self.kind} is called {name!r}. "
            + did_you_mean(name, self.names())
            + f"Known: {', '.join(self.names())}. A {self.kind} from another package must be installed in this "
            f"environment and registered under the entry point {self.group!r}; `lvlm-guard methods` lists them."
        )

    def get(self, name: str) -> Any:
        """Return what the name stands for, importing it on first use; raises `UnknownNameError`."""
        module, _, attribute = self.where(name).partition(":")
        return getattr(import_module(module), attribute)


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
    """Return a package's `__getattr__` and `__dir__` over the names that are `stated` in it, and others `present`."""
    modules = stated(package)

    def getter(attribute: str) -> Any:
        if attribute in modules:
            return getattr(import_module(modules[attribute]), attribute)
        raise AttributeError(f"module {package!r} has no attribute {attribute!r}")

    return getter, lambda: sorted({*present, *modules})
