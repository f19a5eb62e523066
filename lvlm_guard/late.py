"""Names of a package that are imported at first use, so that importing the package costs nothing (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def late(
    package: str, modules: Mapping[str, str], present: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        modules: name -> the module of the package that holds it.
        present: further names that the package holds already.
    """

    def getter(attribute: str) -> Any:
        if attribute in modules:
            return getattr(import_module(f"{package}.{modules[attribute]}"), attribute)
        raise AttributeError(f"module {package!r} has no attribute {attribute!r}")

    return getter, lambda: sorted({*present, *modules})
