"""Markup that is escaped by construction: made by the macros of `parts.html.jinja`, and by `tag` for one element.

Texts are escaped unless they are `Html`, which only these return; so a caller can't forget to escape an answer, a
prompt or a file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

Html = Markup
"""Markup that is already escaped; wrap a literal of your own with care."""

_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"br", "hr", "img", "meta", "link", "input"})


def text(value: object) -> Html:
    """Escape anything that is not `Html`; None gives nothing."""
    return value if isinstance(value, Html) else escape(_clean(value))


def _clean(value: object) -> Any:
    """Replace what XML 1.0 has no place for: most control characters, which a model can emit; None is nothing."""
    if isinstance(value, Html):
        return value
    return "" if value is None else _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def environment(package: str, folder: str = "templates") -> Environment:
    """Return a package's templates of pages: text is escaped, and nothing is undefined."""
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )


@cache
def _parts() -> Any:
    return environment("lvlm_guard.report", "").get_template("parts.html.jinja").module


def part(name: str, *given: Any) -> Html:
    """Return what a macro of `parts.html.jinja` makes."""
    return Html(getattr(_parts(), name)(*given).strip("\n"))


def paragraph(words: object, kind: str = "") -> Html:
    """Return a paragraph of a class of the style sheet."""
    return part("paragraph", words, kind)


def join(parts: Iterable[object], between: str = "") -> Html:
    """Concatenate, escaping what is not `Html`."""
    return text(between).join(text(part) for part in parts)


def tag(name: str, /, *children: object, **attributes: Any) -> Html:
    """Return one element.

    Args:
        name: the element's name.
        children: text (escaped), `Html` (as it is) or None (left out).
        attributes: a trailing underscore is dropped (`class_`), other underscores become hyphens
            (`aria_label`, `stroke_width`); None and False leave an attribute out, True writes it
            as `name="name"`, which HTML and XML both read.
    """
    written = "".join(
        f' {_name(key)}="{text(_name(key) if value is True else value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}/>" if name in _VOID else f"<{name}{written}>{join(children)}</{name}>")


def _name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-") if key != "viewBox" else key
