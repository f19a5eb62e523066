"""Find what the user asked: the text that the matcher compares the picture with.

From chat messages it is the text of the last user message. From a finished prompt it is the last user turn between
the marks of the processor's own chat template, which a talk of sentinels through it tells, or else between marks that
prompts by hand have; a prompt without any marks is taken whole, and a trace notes it. Placeholders and a request for
the answer's format are no part of it (AGLA's authors match the bare question).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

TURNS = (
    (r"USER:\s", r"\s*ASSISTANT:"),  # vicuna_v1, llava_v1: LLaVA-1.5 and LLaVA-NeXT on Vicuna
    (r"\[INST\]", r"\[/INST\]"),  # Mistral
    (r"<\|im_start\|>user\n?", r"<\|im_end\|>"),  # ChatML: Hermes, Yi, Qwen
    (r"<\|start_header_id\|>user<\|end_header_id\|>\s*", r"<\|eot_id\|>"),  # Llama 3
    (r"### (?:Human|Instruction|User):", r"### (?:Assistant|Response):"),
)
"""Marks around a user's turn that prompts by hand have, whatever the processor's template: (start, end) patterns."""
OF_BLIP = ((r"Question:\s*", r"\s*(?:Short answer|Answer):"),)
FRAMES = ("<|vision_start|>", "<|vision_end|>")
"""What stands around a picture's placeholder, of models whose processor is not at hand (a server's)."""
ANSWER_FORMATS = (  # instructions to the language model alone; AGLA's own suffix is the first
    "Please answer this question with one word.",
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
UNMARKED = (
    "No mark of a user's turn was found in the prompt, so the whole of it is matched with the picture. State the "
    "question: processor(..., guard_text=...)."
)
TEXT_ONLY = "{}'s chat template does not read messages in parts, so that the question is not known. Give guard_text=."


def bare(text: str, drop: Sequence[str] = ()) -> str:
    """Return a question without placeholders (`drop`) and without a request for the answer's format."""
    for piece in drop:
        text = text.replace(piece, " ")
    text = text.strip()
    for suffix in ANSWER_FORMATS:
        if text.lower().endswith(suffix.lower()) and len(text) > len(suffix):
            text = text[: -len(suffix)].strip()
    # by line: a pattern that looks for blanks before a line's end tries each blank of a long run anew
    return "\n".join(line.strip(" \t") for line in text.split("\n"))


class Rendered(str):
    """A prompt whose question is known: apply_chat_template() has rendered it, or the caller states the question.

    The question travels with this one string: another request may render the same text and ask about it otherwise.
    """

    question: str

    def __new__(cls, prompt: str, question: str = "") -> Self:
        made = super().__new__(cls, prompt)
        made.question = question
        return made


@dataclass(frozen=True)
class Turn:
    """What a processor's prompts have around the last user's text.

    Args:
        drop: what stands for a picture, which is no part of a question.
        marks: of the processor's own template, (start, end) as patterns; none where it tells none.
        note: what a trace says of a prompt without any marks; None where there are none to be had.
        whole: whether such a prompt is taken whole; not where a template reads text alone, and prints the parts of
            messages as Python does.
    """

    drop: tuple[str, ...]
    marks: tuple[tuple[str, str], ...] = ()
    note: str | None = UNMARKED
    whole: bool = True

    @classmethod
    def of(cls, processor: Any, plain: type[Any], placeholder: str) -> Turn:
        """Learn it from the processor's chat template, by rendering words through it that no template says.

        The start of a turn is what a first and a later text have in common before them; its end is what the text has
        in common after it where an answer follows, where one is asked for, and where the prompt ends. A system turn,
        a begin-of-text mark and a thinking mark fall away by that.
        """
        drop = (placeholder, *FRAMES)
        if not getattr(processor, "chat_template", None):
            return cls(drop, OF_BLIP, note=None)
        try:
            before, after = _around(processor, plain, "user")
            ended = _around(processor, plain, "user", asks=False)[1]
            _, to_answer, to_last, _ = _around(processor, plain, "user", "assistant", "user")
            seen = _around(processor, plain, "user", pictures=1)[0]
        except _TextOnly:
            return cls(drop, note=TEXT_ONLY.format(plain.__name__), whole=False)
        except Exception:  # one that reads no such talk may raise whatever its author chose
            return cls(drop)
        start = len(before) - len(_shared(before[::-1], to_last[::-1]))
        for mark in processor.tokenizer.get_added_vocab():  # "<s>[INST]" and "</s>[INST]" share "s>[INST]"
            at = before.rfind(mark, 0, start + len(mark) - 1)
            start = max(start, at + len(mark)) if 0 <= at < start < at + len(mark) else start
        ends = {_shared(after, end).strip() for end in (to_answer, ended)} - {""}
        opening = before[start:].strip()
        for end in ends:  # where the template writes a system turn by itself, that turn's end is common as well
            opening = opening.removeprefix(end).strip()
        # what ends the turn is mostly one token; a prompt by hand may go on otherwise after it
        closes = {re.sub(r"^(<[^<>\s]+>).*", r"\1", end, flags=re.DOTALL) for end in ends}
        closing = "|".join(re.escape(close) for close in sorted(closes, key=len, reverse=True))
        picture = seen[len(_shared(seen, before)) :].strip()
        marks = ((re.escape(opening), closing),) if opening and closing else ()
        return cls(tuple(filter(None, (picture, *drop))), marks)

    def question(self, prompt: str) -> tuple[str, str | None]:
        """Return the question in a finished prompt, "" where the last user turn has none, and what is to be noted."""
        if isinstance(prompt, Rendered):
            return prompt.question, None
        own = _between(prompt, self.marks)
        turn = _between(prompt, TURNS) if own is None else own
        if turn is not None:
            return bare(turn, self.drop), None
        found = bare(prompt, self.drop) if self.whole else ""
        return found, self.note if found or not self.whole else None

    def asked(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the text of the last user message; "" where it has none."""
        content = next((each.get("content") for each in reversed(messages) if each.get("role") == "user"), None)
        if isinstance(content, str):
            return bare(content, self.drop)
        return bare("\n".join(part.get("text", "") for part in content or () if part.get("type") == "text"), self.drop)


class _TextOnly(Exception):
    """A template changes a user's text, or prints the parts of a message."""


def _shared(one: str, other: str) -> str:
    """Return the longest common start."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def said(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    """Return a message of a talk, its pictures before its text."""
    return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def _around(processor: Any, plain: type[Any], *roles: str, pictures: int = 0, asks: bool = True) -> list[str]:
    """Return what a template writes around the texts of a talk, one more than there are."""
    talk = [said(role, f"Zq{turn}qZ", pictures) for turn, role in enumerate(roles)]
    made = plain.apply_chat_template(processor, talk, tokenize=False, add_generation_prompt=asks)
    found = re.split(r"Zq\dqZ", made)
    if len(found) != len(roles) + 1 or "'type':" in made:
        raise _TextOnly
    return found


def _between(prompt: str, marks: Sequence[tuple[str, str]]) -> str | None:
    """Return the turn behind the last of these opening marks, up to the first that closes it; None without one."""
    opened = [(found.start(), -at, found.end(), end) for at, (start, end) in enumerate(marks)
              for found in re.finditer(start, prompt)]  # fmt: skip
    if not opened:
        return None
    *_, start, end = max(opened)  # of two that open at one place, the first in the list
    return re.split(end, prompt[start:], maxsplit=1)[0]
