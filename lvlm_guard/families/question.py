"""Find what the user asked: the text that the matcher compares the picture with.

From chat messages it is the text of the last user message. From a finished prompt it is the last user
turn between the marks of the processor's own chat template or of the family's; a prompt without any
marks is taken whole, and a trace notes it. Placeholders and a
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


def marks_of(processor: Any, plain: type[Any]) -> tuple[tuple[str, str], ...]:
    """Return the marks around a user's turn in the processor's chat template, as `Family.turns`; () where none is told.

    They are what a first and a later turn have in common before their texts, and what has in common after a text where
    an answer follows and where one is asked for.
    """
    first, answer, last = "Zqfirst", "Zqanswer", "Zqlast"  # no template says these words

    def around(words: str, *turns: tuple[str, str]) -> list[str]:
        talk = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        rendered: str = plain.apply_chat_template(processor, talk, tokenize=False, add_generation_prompt=True)
        return rendered.split(words) if rendered.count(words) == 1 and "'type':" not in rendered else []

    try:
        before, after = around(last, ("user", last))
        talk = [("user", first), ("assistant", answer), ("user", last)]
        to_answer = around(first, *talk)[1].partition(answer)[0]
        to_last = around(answer, *talk)[1].partition(last)[0]
    except Exception:  # no template, or one that reads no such talk: it may raise whatever its author chose
        return ()
    opening = _shared_start(before[::-1], to_last[::-1])[::-1].strip()
    closing = _shared_start(after, to_answer).strip()
    token = re.match(r"<[^<>\s]+>", closing)  # what ends the turn; a prompt by hand may go on otherwise after it
    closing = token[0] if token else closing
    return ((re.escape(opening), re.escape(closing)),) if opening and closing else ()


def _shared_start(one: str, other: str) -> str:
    length = 0
    while one[length : length + 1] == other[length : length + 1] != "":
        length += 1
    return one[:length]


def turn_in(prompt: str, marks: Sequence[tuple[str, str]]) -> str | None:
    """Return the last user turn of a finished prompt, None where it has none of these marks."""
    last: tuple[int, str | None] = (-1, None)
    for start, end in marks:
        for opened in re.finditer(start, prompt):
            closed = re.search(end, prompt[opened.end() :])
            turn = prompt[opened.end() :][: closed.start() if closed else None]
            last = max(last, (opened.start(), turn), key=lambda found: found[0])
    return last[1]


def from_prompt(prompt: str, family: Family, image_token: str, marks: Sequence[tuple[str, str]] = ()) -> str:
    """Return the question in a finished prompt; "" where the last user turn holds nothing but pictures.

    Args:
        prompt: with its placeholders.
        family: of the model; its marks are known too.
        image_token: the placeholder.
        marks: of the processor's own template, see `marks_of`.
    """
    turn = turn_in(prompt, (*family.turns, *marks))  # of two that open at one place, the first counts
    return bare(prompt if turn is None else turn, (image_token, *family.noise))


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
