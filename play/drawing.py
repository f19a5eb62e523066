"""What the page shows, as markup: answers, verdicts, maps. Texts are escaped by construction (`lvlm_guard.report`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lvlm_guard.cli.options import WORLD_ONLY
from lvlm_guard.play.pictures import MOST_BYTES, MOST_PIXELS
from lvlm_guard.report import Html, answer_strip, data_address, legend, overlay, tag
from lvlm_guard.report.answer import Looked, Said
from lvlm_guard.report.html import join
from lvlm_guard.report.pictures import fitted

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.play.backend import Backend, Offered
    from lvlm_guard.play.pictures import Example
    from lvlm_guard.verify import Checked

MARKS = {"supported": "✓", "unsure": "?", "unsupported": "✗"}
_MEANS = {
    "supported": "the matcher sees it",
    "unsure": "the matcher is not sure",
    "unsupported": "the matcher sees none",
}


def style(methods: Iterable[str] = ()) -> str:
    """Return the page's rules: the reports' own, kept to what is drawn here, and the page's.

    Args:
        methods: each of these shows its knobs while it is chosen.
    """
    report = files("lvlm_guard.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", report, re.DOTALL)
    _, _, rest = report.partition("* { box-sizing")
    # gradio says by a class whether it is dark, so that a reader may choose otherwise than the system does
    scoped = f":root {{{light}}} .dark {{{dark} color-scheme: dark;}} .guard {{ * {{ box-sizing{rest}}}"
    knobs = "".join(
        f'body:has(#methods input[name="{name}"]:not(:checked)) [id="knobs-{name}"] {{ display: none; }} '
        for name in methods
    )
    return scoped + knobs + files("lvlm_guard.play").joinpath("page.css").read_text(encoding="utf-8")


def script(name: str) -> str:
    """Return one of the scripts beside this module."""
    return files("lvlm_guard.play").joinpath(f"{name}.js").read_text(encoding="utf-8")


def guard(*content: object, class_: str = "", **attributes: Any) -> Html:
    """Return a part of the page to which the reports' rules apply."""
    return tag("div", *content, class_=f"guard {class_}".strip(), **attributes)


def head(backend: Backend) -> Html:
    """Return the heading: what this is, who answers, and what it can't do."""
    plainly, colon, rest = WORLD_ONLY.partition(":")
    world = tag("p", tag("strong", plainly, colon), rest, class_="remark")
    return guard(
        tag("h1", "lvlm-guard ", tag("span", "playground", class_="soft")),
        tag("p", "Ask one picture the same thing with and without a guard, and see what changed. ", class_="lead"),
        tag("p", "Answers come from ", tag("b", backend.title), ".", class_="lead"),
        world if backend.embedded else None,
        class_="top",
    )


def well() -> Html:
    """Return where a picture is dropped, pasted or chosen."""
    limits = f"PNG, JPEG, WebP, …; at most {MOST_BYTES >> 20} MiB and {MOST_PIXELS // 1_000_000} megapixels."
    return guard(
        tag(
            "label",
            tag("b", "Choose a picture"),
            tag("span", "or drop it here, or paste it"),
            tag("small", limits, " It stays in your browser; nothing is kept here."),
            tag("input", type="file", accept="image/*", id="picture-file"),
            class_="drop",
        ),
        class_="well",
    )


def gallery(begun: Sequence[Example]) -> Html:
    """Return the pictures to begin with, each with its question."""
    buttons = [
        tag(
            "button",
            tag("img", src=one.thumbnail, alt=""),
            tag("span", one.question),
            type="button",
            data_example=index,
            aria_label=f"Example, {one.shows}: {one.question}",
        )
        for index, one in enumerate(begun)
    ]
    return guard(tag("h2", "Or begin with one of these"), tag("div", *buttons, class_="gallery"))


def nothing(words: str) -> Html:
    """Return the place of a picture that is not there yet."""
    return guard(tag("p", words), class_="viewer empty")


def refused(words: str) -> Html:
    """Return why something can't be done."""
    return guard(tag("strong", "Not possible. "), words, class_="refusal", role="alert")


def viewer(picture: Image, looked: Looked | None = None, title: str = "", back: bool = False) -> Html:
    """Return the picture, under a map whose strength a slider sets.

    Args:
        picture: that was sent.
        looked: where the matcher looked; None: nobody was asked.
        title: what for.
        back: whether a button leads back to the map of the question.
    """
    small = fitted(picture)
    base = tag("img", src=data_address(small), alt="The picture you asked about", class_="base")
    if looked is None:
        return guard(tag("div", base, class_="stack"), class_="viewer")
    shown = overlay(small, looked.relevance, keep=looked.keep)
    over = tag("img", src=data_address(shown), alt=f"Where the matcher looked: {title}", class_="map")
    return guard(
        tag("div", base, over, class_="stack"),
        tag(
            "label",
            tag("span", "Picture"),
            tag("input", type="range", min=0, max=100, value=85, aria_label="How strongly the map covers the picture"),
            tag("span", "Map"),
            class_="slide",
        ),
        tag("p", tag("b", title), " ", looked.caption, class_="note"),
        tag("button", "Back to the question", type="button", data_object="", class_="quiet") if back else None,
        class_="viewer",
    )


def card(
    said: Said,
    offered: Offered,
    decode: Callable[[Any], str],
    *,
    whole: bool,
    verdicts: Sequence[Checked] | None = None,
    of_question: bool = False,
) -> Html:
    """Return one answer.

    Args:
        said: the answer so far.
        offered: its method.
        decode: tokens of its trace to text.
        whole: whether it is finished.
        verdicts: on what it names; None where nobody judges.
        of_question: whether they are on what the question names instead.
    """
    title = (tag("h3", said.method), tag("p", offered.does, class_="does"))
    if not whole:
        text = tag("p", said.text, tag("span", "▍", class_="caret", aria_hidden="true"), class_="tokens")
        return guard(*title, text, class_="card growing", aria_busy="true")
    return guard(
        *title,
        answer_strip(said, decode),
        tag("p", overruled(said), class_="changed") if said.trace else None,
        _named(verdicts, of_question),
        tag("p", _cost(said), class_="cost"),
        class_="card",
    )


def waiting(method: str, offered: Offered) -> Html:
    """Return the place of an answer whose turn has not come."""
    return guard(
        tag("h3", method),
        tag("p", offered.does, class_="does"),
        tag("p", "waits", class_="tokens"),
        class_="card waits",
    )


def failed(method: str, offered: Offered, words: str) -> Html:
    """Return why a method gave no answer."""
    return guard(tag("h3", method), tag("p", offered.does, class_="does"), refused(words), class_="card")


def overruled(said: Said) -> str:
    """Return how many tokens the guard overruled, in words; "" where nobody knows."""
    steps = said.trace["steps"][0] if said.trace and said.trace.get("steps") else None
    if steps is None:
        return ""
    changed = sum(step.get("overruled") is not None for step in steps)
    whole = f"{len(steps)} token{'' if len(steps) == 1 else 's'}"
    return f"{changed} of {whole} overruled" if changed else f"none of {whole} overruled"


def _named(verdicts: Sequence[Checked] | None, of_question: bool) -> Html | None:
    if verdicts is None:
        return None
    if not verdicts:
        return tag("p", "Neither question nor answer names an object that is checked.", class_="note")
    held = {one.mention.object: one.verdict for one in verdicts}
    buttons = [
        tag(
            "button",
            tag("span", MARKS[verdict.label], class_="mark", aria_hidden="true"),
            name,
            " ",
            tag("span", f"{verdict.p_supported:.2f}", class_="p"),
            tag("span", f", {_MEANS[verdict.label]}. Show where it looked.", class_="unseen"),
            type="button",
            class_=f"chip {verdict.label}",
            data_object=name,
        )
        for name, verdict in held.items()
    ]
    whose = "Asked about" if of_question else "It names"
    return tag("div", tag("span", whose, class_="whose"), *buttons, class_="chips", role="group", aria_label=whose)


def _cost(said: Said) -> str:
    """Return seconds and forwards; no ratio of seconds, which one call each would make up."""
    if said.trace is None:
        return f"{said.seconds:.2f} s"
    views = said.trace["masks"]
    more = f", {views} second view{'' if views == 1 else 's'}" if views else ""
    return f"{said.seconds:.2f} s, {said.trace['global_forwards']} + {said.trace['local_forwards']} forwards{more}"


def key() -> Html:
    """Return how to read the answers."""
    held = join(
        join((tag("span", MARKS[label], " object", class_=f"chip {label}"), f" {_MEANS[label]}; ")) for label in MARKS
    )
    return guard(legend(), tag("p", held, "press one to see where it looked.", class_="legend"))
