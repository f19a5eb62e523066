"""Find what the user asked: the text that the matcher compares the picture with.

From chat messages it is the text of the last user message. From a finished prompt it is the last user
turn between the template's marks; a prompt without any marks is taken whole. Placeholders and a
request for the answer's format are no part of it (AGLA's authors match the bare question).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lvlm_guard.families.family import Family

ANSWER_FORMATS = (  # instructions to the language model alone; AGLA's own suffix is the first
    "Please answer this question with one word.",
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


def bare(text: str, drop: Sequence[str] = ()) -> str:
    """Return a question without placeholders (`drop`) and without a request for the answer's format."""
    for piece in drop:
        text = text.replace(piece, " ")
    text = text.strip()
    for suffix in ANSWER_FORMATS:
        if text.lower().endswith(suffix.lower()) and len(text) > len(suffix):
            text = text[: -len(suffix)].strip()
    return re.sub(r"[ \t]*\n[ \t]*", "\n", text)


def from_prompt(prompt: str, family: Family, image_token: str) -> str:
    """Return the question in a finished prompt; "" where the last user turn holds nothing but pictures."""
    last = (-1, prompt)
    for start, end in family.turns:
        for opened in re.finditer(start, prompt):
            closed = re.search(end, prompt[opened.end() :])
            turn = prompt[opened.end() :][: closed.start() if closed else None]
            last = max(last, (opened.start(), turn), key=lambda found: found[0])
    return bare(last[1], (image_token, *family.noise))


def from_messages(messages: Sequence[dict[str, Any]], family: Family, image_token: str) -> str:
    """Return the text of the last user message; "" where it has none."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return bare(content, (image_token, *family.noise))
        parts = [part.get("text", "") for part in content or () if part.get("type") == "text"]
        return bare("\n".join(parts), (image_token, *family.noise))
    return ""
