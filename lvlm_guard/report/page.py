"""The shell of a page: one file, its style inside, readable in light, in dark and on paper."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from lvlm_guard.files import whole
from lvlm_guard.report.html import Html, part


def section(title: str, *content: object, lead: object = None) -> Html:
    """Return a titled part of a page."""
    return part("section", title, content, lead)


def note(*content: object) -> Html:
    """Return a framed remark that a reader must not miss."""
    return part("note", content)


def page(title: str, *content: object, lead: object = None, foot: object = None, style: str = "") -> str:
    """Return a whole HTML document. It refers to nothing outside itself.

    Args:
        title: heading and window title.
        content: sections, in order.
        lead: a sentence or two under the heading.
        foot: how the page was made: command, versions.
        style: rules of this page alone; no text of a user's or a model's.
    """
    # a style sheet is raw text in HTML: escaping its quotes would change it
    rules = Html(files("lvlm_guard.report").joinpath("style.css").read_text(encoding="utf-8") + style)
    return part("page", title, content, lead, foot, rules) + "\n"


def write_page(path: str | os.PathLike[str], document: str) -> Path:
    """Write a document as UTF-8, its folder made if need be; an older file goes only when all is there."""
    target = Path(path)
    with whole(target) as unfinished:
        unfinished.write_text(document, encoding="utf-8", newline="\n")
    return target
