"""Markup that is escaped by construction.

`tag` is the only function that makes markup. Its children are escaped unless they are `Html`, which
only `tag` and `join` return; so a caller can't forget to escape an answer, a prompt or a file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
VOID = frozenset({"br", "hr", "img", "meta", "link", "input"})


class Html(str):
    """Markup that is already escaped. Made by `tag` and `join`; wrap a literal of your own with care."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape anything that is not `Html`; None gives nothing.

    XML 1.0 has no place for most control characters, and a model can emit them: they become U+FFFD.
    """
    if value is None:
        return Html("")
    if isinstance(value, Html):
        return value
    clean = UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))
    return Html(escape(clean))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Concatenate, escaping what is not `Html`."""
    return Html(text(between).join(text(part) for part in parts))


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
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def _name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-") if key != "viewBox" else key
