"""What a word must look like where another one stood: its case, and the article before it."""

from __future__ import annotations

from lvlm_guard.matching.vocabulary import article

VERBS = {"is": "are", "was": "were", "has": "have"}
SINGULAR = {"a", "an", "one", "this", "that", "each", "every", "another", "the", "his", "her", "its", "their", "my"}


def cased(word: str, like: str, spelling: str) -> str:
    """Return a word in the case of the text it replaces: upper, every word's first letter, the first letter, or as is.

    Args:
        word: that comes in.
        like: the text that goes out.
        spelling: how the list spells what goes out; where the text does so too, the new word is left as listed.
    """
    if like == spelling or not like:
        return word
    if like.isupper():
        return word.upper() if len(like) > 2 else word  # "TV" is no shouting
    if like.istitle() and " " in like:
        return word.title()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def with_article(before: str, word: str) -> str:
    """Return "a", "an", "A" or "An" for an article that stands before another word now; other words as they are."""
    if before.lower() not in ("a", "an"):
        return before
    new = article(word)
    return new.capitalize() if before[:1].isupper() else new


def agreeing(verb: str, is_plural: bool) -> str:
    """Return is, was or has in the number of its noun, in its case; other words as they are."""
    pairs = VERBS if is_plural else {many: one for one, many in VERBS.items()}
    new = pairs.get(verb.lower())
    if new is None:
        return verb
    return new.capitalize() if verb[:1].isupper() else new
