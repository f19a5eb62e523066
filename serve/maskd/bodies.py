"""What a request's body asks."""

from __future__ import annotations

import binascii
import json
from typing import Any

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import MOST_TEXT, Ask
from lvlm_guard.serve.vote.ballot import claims_of
from lvlm_guard.serve.wire import MOST_SCORES


def mask_ask(body: bytes) -> Ask:
    """Return what a request for a mask asks; raises `Refused`, 400, where its body is anything else."""
    fields = _fields(body, {"image", "question"})
    return Ask.about("mask", _image(fields), (_text(fields.get("question"), "question"),))


def scores_ask(body: bytes) -> Ask:
    """Return what a request for scores asks: its claims, or those that `vote` asks about an answer to its question.

    Raises as `mask_ask` does.
    """
    fields = _fields(body, {"image", "question", "claims"})
    image = _image(fields)
    if ("question" in fields) == ("claims" in fields):
        raise Refused(400, "Give either 'claims', a list of sentences, or 'question', whose claims are looked for.")
    if "question" in fields:
        return Ask.about("scores", image, claims_of(_text(fields["question"], "question")))
    claims = fields["claims"]
    if not isinstance(claims, list) or not 1 <= len(claims) <= MOST_SCORES:
        raise Refused(400, f"'claims' is to be a list of 1 to {MOST_SCORES} sentences.")
    return Ask.about("scores", image, tuple(dict.fromkeys(_text(claim, "claims") for claim in claims)))


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise Refused(400, f"The body is a JSON {type(fields).__name__}, no object with {', '.join(sorted(known))}.")
    unknown = sorted(set(fields) - known)
    if unknown:
        raise Refused(400, f"There is no field {unknown[0][:80]!r}; there are {', '.join(sorted(known))}.")
    return fields


def _image(fields: dict[str, Any]) -> bytes:
    text = fields.get("image")
    if not isinstance(text, str) or not text:
        raise Refused(400, "'image' is to be a picture's file in base64.")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            400, f"'image' is no base64 ({error}): send a picture's file in it, without 'data:...,'."
        ) from error


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(400, f"{name!r} is to hold text, not {str(value)[:40]!r}.")
    if len(value) > MOST_TEXT:
        raise Refused(400, f"{name!r} holds a text of {len(value):,} characters; the limit is {MOST_TEXT:,}.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(400, f"{name!r} holds half of a surrogate pair, which is no character.")
    return value
