"""The items where decoders disagree, in words and signs; and where a caption names what is not in the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lvlm_guard.evals.metrics import chair, tokens
from lvlm_guard.evals.report.disagreement import STANDINGS, Disagreement, Judged, Shown, Standing

HEADINGS = {"broken": "Broken by", "fixed": "Fixed by", "unreadable": "Unreadable with", "changed": "Changed by"}
SIGNS = {"unreadable": "?", "wrong": "✗", "right": "✓"}
"""Of several answers the first of these is shown."""


def standings_of(found: Disagreement) -> list[Standing]:
    """Return the outcomes that there are."""
    return [standing for standing in STANDINGS if any(other == standing for _, other in found.counts)]


def here(found: Disagreement, name: str, standing: Standing) -> int:
    """Return how many items of an outcome are shown."""
    return sum(one.standings.get(name) == standing for one in found.shown)


def heading(one: Shown) -> str:
    """Return an item's heading: "Broken by agla; fixed by vote"."""
    by = {standing: [name for name, its in one.standings.items() if its == standing] for standing in STANDINGS}
    first, *rest = [f"{HEADINGS[standing]} {', '.join(names)}" for standing, names in by.items() if names]
    return "; ".join([first, *(part[0].lower() + part[1:] for part in rest)])


def alike(said: Sequence[Judged]) -> list[tuple[str, Judged]]:
    """Return answers that differ, each with the seeds that gave it ("" where all did)."""
    same: dict[tuple[str, bool], list[int]] = {}
    for seed, one in enumerate(said):
        same.setdefault((one.text, one.ended), []).append(seed)
    return [("seed " + ", ".join(map(str, s)) + ": " if len(same) > 1 else "", said[s[0]]) for s in same.values()]


def sign(said: Sequence[Judged]) -> tuple[str, str]:
    """Return a decoder's answers as a sign ("✓", "✗", "?", or how many absent objects) and what it means."""
    if said and said[0].caption is not None:
        absent = max(-(one.merit or 0.0) for one in said)
        return (f"✗ {absent:g}", "wrong") if absent else ("✓", "right")
    worst = next((mark for mark in SIGNS if mark in [one.mark for one in said]), "")
    return SIGNS.get(worst, ""), worst


def pieces(caption: chair.Caption) -> Iterator[tuple[str, str]]:
    """Yield a caption piece by piece, as the model wrote it, each with the absent object that it names, or ""."""
    text, done = caption.caption, 0
    for start, end, node in absent_spans(caption):
        yield text[done:start], ""
        yield text[start:end], node
        done = end
    yield text[done:], ""


def absent_spans(caption: chair.Caption) -> Iterator[tuple[int, int, str]]:
    """Return where the words for absent objects stand in a caption: start, end, object; in order."""
    places, done = [*_places(caption.caption)], 0
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


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Yield where CHAIR's tokens stand in a text; one that can't be found has no length."""
    # a few capitals are two letters in lower case: left as they are, every place is one of the text
    lower, at = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text), 0
    for token in tokens.words(text):
        start = lower.find(token, at)
        end = start + len(token) if start >= 0 else at
        yield start if start >= 0 else at, end
        at = end
