"""The text a matcher is asked about: cleaned as BLIP was trained, tokenised once, cut at 35 pieces.

Source: LAVIS' `BlipCaptionProcessor`, as AGLA's release (Lackel/AGLA at efa1263) uses it. The release
tokenises a second time without the limit and crashes on longer prompts; here one tokenisation serves
scores and map, and what was cut off is said in a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvlm_guard.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = 50  # kept of a text before it is tokenised
PIECES = 35  # kept of a text, the two specials included

_DROPPED = re.compile(r"[.!\"()*#:;~]")
_BLANKS = re.compile(r"\s{2,}")


def prepare(text: str) -> str:
    """Return the text as the matcher's training saw it: lower case, less punctuation, at most 50 words.

    `?`, `,`, `/` and `'` stay. Preparing twice changes nothing. Raises `TextError` where nothing is left.
    """
    words = _words(text)[:WORDS]
    if not words:
        raise TextError(
            f"The matching text {text!r} is empty once punctuation is dropped, so no pixel can matter to it. Ask a "
            "question, or state the matching text yourself: processor(..., guard_text='...')."
        )
    return " ".join(words)


def _words(text: str) -> list[str]:
    flat = _BLANKS.sub(" ", _DROPPED.sub(" ", text.lower())).strip("\n ")
    return flat.split(" ") if flat else []


@dataclass(frozen=True)
class MatchingText:
    """A text for the matcher: cleaned, its word pieces with the two specials around them, and what was cut off."""

    prepared: str
    ids: tuple[int, ...]
    note: str | None = None


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase, pieces: int = PIECES) -> MatchingText:
    """Prepare and tokenise a text, cut to `pieces` with the specials; raises `TextError` where no content is left."""
    prepared, words, note = prepare(text), len(_words(text)), None
    whole: list[int] = tokenizer(prepared, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    ids = whole if len(whole) <= pieces else [*whole[: pieces - 1], whole[-1]]
    if len(ids) < 3:
        raise TextError(
            f"The matching text {text!r} holds no piece that the matcher's tokenizer knows. Put it in words, or state "
            "the matching text yourself: processor(..., guard_text='...')."
        )
    if words > WORDS:
        note = f"the matching text has {words} words; the matcher read {WORDS} at most, and {pieces} pieces at most"
    elif len(whole) > pieces:
        note = f"the matching text has {len(whole)} pieces; the matcher read the first {pieces}, specials included"
    return MatchingText(prepared, tuple(ids), note)
