"""What each decoder said about a picture: whole answers, right or wrong, absent objects marked in captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.metrics import chair, tokens
from lvlm_guard.evals.report.disagreement import Judged, judge
from lvlm_guard.report import Html, tag
from lvlm_guard.report.html import join

MARKS = {"right": "✓", "wrong": "✗", "unreadable": "?"}


def replies(task: Mapping[str, Any], sample: Mapping[str, Any], decoders: Sequence[str]) -> Html:
    """Return the answers of some decoders, a line each; seeds that said the same share one."""
    lines = [_reply(name, judge(task, sample, name)) for name in decoders if name in sample["answers"]]
    return tag("dl", *(part for line in lines for part in line), class_="replies")


def _reply(decoder: str, said: Sequence[Judged]) -> tuple[Html, Html]:
    same: dict[tuple[str, bool], list[int]] = {}
    for seed, one in enumerate(said):
        same.setdefault((one.text, one.ended), []).append(seed)
    shown = [_answer(said[seeds[0]], seeds if len(same) > 1 else []) for seeds in same.values()]
    return tag("dt", decoder), tag("dd", *shown)


def _answer(one: Judged, seeds: Sequence[int]) -> Html:
    runs = tag("span", f"seed {', '.join(map(str, seeds))}: ", class_="note") if seeds else None
    text = marked(one.caption) if one.caption is not None else one.text
    cut = tag("span", " (cut at the token limit)", class_="note") if not one.ended else None
    return tag("p", runs, tag("span", text or "(nothing)", class_="text"), cut, " ", _verdict(one))


def _verdict(one: Judged) -> Html | None:
    if one.mark:
        return tag("span", f"{MARKS[one.mark]} {one.mark}", class_=f"mark {one.mark}")
    if one.caption is not None:
        named = f"names {len(one.caption.recalled)} of {len(one.caption.truth)}"
        absent = list(dict.fromkeys(node for _, node, _ in one.caption.hallucinated))
        told = f"{named}; ✗ not there: {', '.join(absent)}" if absent else named
        return tag("span", told, class_=f"mark {'wrong' if absent else ''}".strip())
    return None


def marked(caption: chair.Caption) -> Html:
    """Return a caption with the words for absent objects marked; the text is otherwise as the model wrote it."""
    text, parts, done = caption.caption, [], 0
    for start, end, node in absent_spans(caption):
        parts += [
            text[done:start],
            tag("span", text[start:end], class_="absent", title=f"{node} is not in the picture"),
        ]
        done = end
    return join([*parts, text[done:]])


def absent_spans(caption: chair.Caption) -> Iterator[tuple[int, int, str]]:
    """Return where the words for absent objects stand in a caption: start, end, object; in order."""
    places = _places(caption.caption)
    done = 0
    for word, node, index in caption.hallucinated:
        if index >= len(places):
            continue
        start, end = places[index]
        # "hot dog" is read as one word, "passenger jet" as jet: the second token belongs to the object too
        first, after = caption.caption[start:end].lower(), places[index + 1] if index + 1 < len(places) else (end, end)
        second = caption.caption[after[0] : after[1]].lower()
        if " " in word or (first[:3] != word[:3] and second[:3] == word[:3]):
            end = after[1]
        if start >= done:
            yield start, end, node
            done = end


def _places(text: str) -> list[tuple[int, int]]:
    """Return where CHAIR's tokens stand in a text; one that can't be found has no length."""
    # a few capitals are two letters in lower case: left as they are, every place is one of the text
    lower = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    places, at = [], 0
    for token in tokens.words(text):
        start = lower.find(token, at)
        if start < 0:
            places.append((at, at))
            continue
        at = start + len(token)
        places.append((start, at))
    return places
