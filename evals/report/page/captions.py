"""Where a caption names what is not in the picture."""

from __future__ import annotations

from collections.abc import Iterator

from lvlm_guard.evals.metrics import chair, tokens


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
