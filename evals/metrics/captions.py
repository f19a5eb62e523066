"""Captions as texts: their words, how varied and how looping they are, and what they were after fewer tokens.

Under greedy decoding, and where every step has its own draw, the first 64 tokens of a long caption are the caption of a
run with 64 tokens: one run gives CHAIR at every limit. Beams and methods that look back do not have that.

Distinct-1 (Li et al., NAACL 2016, arXiv:1510.03055) falls with length by itself: compare it at one limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.answers import LIMITS

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(caption: str) -> list[str]:
    """Return the lower-cased words, without marks."""
    return _WORD.findall(caption.lower())


def distinct_1(read: Sequence[str]) -> float:
    """Return the share of different words among `words`; 0 where there are none."""
    return len(set(read)) / len(read) if read else 0.0


def repeat_4(read: Sequence[str]) -> float:
    """Return the share of runs of four words that stood before, which finds loops; 0 below four words."""
    fours = list(zip(read, read[1:], read[2:], read[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if fours else 0.0


def prefix(text: str, cut_at: Sequence[int], limit: int) -> str:
    """Return what of a caption stood after its first `limit` tokens.

    Args:
        text: the whole caption.
        cut_at: characters after each of `LIMITS` tokens, as the table of answers has them.
        limit: one of `LIMITS`.

    Raises:
        DataError: no length is known at that limit, or the lengths do not fit the text.
    """
    if limit not in LIMITS or len(cut_at) != len(LIMITS):
        raise DataError(f"Captions are cut at {', '.join(map(str, LIMITS))} tokens, not at {limit} by {list(cut_at)}.")
    end = cut_at[LIMITS.index(limit)]
    if not 0 <= end <= len(text):
        raise DataError(f"A caption of {len(text)} characters can't be cut after {end}: its row of answers is damaged.")
    return text[:end]
