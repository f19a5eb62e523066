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
from typing import Any

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


@dataclass(frozen=True)
class Turn:
    """What a processor's prompts have around the last user's text.

    Args:
        marks: of the processor's own template, (start, end) as patterns; none where it tells none.
        others: of prompts that other templates made.
        drop: what stands for a picture, which is no part of a question.
        reads_parts: whether the template reads messages in parts; a text-only one prints them as they are in Python.
    """

    marks: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = TURNS
    drop: tuple[str, ...] = FRAMES
    reads_parts: bool = True

    @classmethod
    def of(cls, processor: Any, plain: type[Any], placeholder: str) -> Turn:
        """Learn it from the processor's chat template, by rendering words through it that no template says.

        The start of a turn is what a first and a later text have in common before them; its end is what the text has
        in common after it where an answer follows, where one is asked for, and where the prompt ends. A system turn,
        a begin-of-text mark and a thinking mark fall away by that.
        """
        if not getattr(processor, "chat_template", None):
            return cls(others=(*TURNS, *OF_BLIP), drop=(placeholder, *FRAMES))
        first, answer, last = "Zqfirst", "Zqanswer", "Zqlast"
        asking = [("user", first), ("assistant", answer), ("user", last)]

        def around(words: str, *turns: tuple[str, str], prompt: bool = True, picture: bool = False) -> list[str]:
            image = [{"type": "image"}] * picture
            talk = [{"role": role, "content": [*image, {"type": "text", "text": text}]} for role, text in turns]
            made: str = plain.apply_chat_template(processor, talk, tokenize=False, add_generation_prompt=prompt)
            if made.count(words) != 1 or "'type':" in made:
                raise _TextOnly
            return made.split(words)

        try:
            before, after = around(last, ("user", last))
            bare_end = around(last, ("user", last), prompt=False)[1]
            to_answer = around(first, *asking)[1].partition(answer)[0]
            to_last = around(answer, *asking)[1].partition(last)[0]
            seen = around(last, ("user", last), picture=True)[0]
        except _TextOnly:
            return cls(drop=(placeholder, *FRAMES), reads_parts=False)
        except Exception:  # one that reads no such talk may raise whatever its author chose
            return cls(drop=(placeholder, *FRAMES))
        start = len(before) - len(_shared(before[::-1], to_last[::-1]))
        for mark in processor.tokenizer.get_added_vocab():  # "<s>[INST]" and "</s>[INST]" share "s>[INST]"
            at = before.rfind(mark, 0, start + len(mark) - 1)
            start = max(start, at + len(mark)) if 0 <= at < start < at + len(mark) else start
        ends = {_shared(after, end).strip() for end in (to_answer, bare_end)} - {""}
        opening = before[start:].strip()
        for end in ends:  # where the template writes a system turn by itself, that turn's end is common as well
            opening = opening.removeprefix(end).strip()
        picture = seen[len(_shared(seen, before)) :].strip()
        # what ends the turn is mostly one token; a prompt by hand may go on otherwise after it
        tokens = [re.match(r"<[^<>\s]+>", end) for end in ends]
        closes = [token[0] if token else end for token, end in zip(tokens, ends, strict=True)]
        closing = "|".join(re.escape(close) for close in sorted(set(closes), key=len, reverse=True))
        marks = ((re.escape(opening), closing),) if opening and closing else ()
        return cls(marks, drop=tuple(filter(None, (picture, placeholder, *FRAMES))))

    def last(self, prompt: str) -> str | None:
        """Return the last user turn of a finished prompt, None where it has no known marks."""
        own = _between(prompt, self.marks)
        return _between(prompt, self.others) if own is None else own

    def question(self, prompt: str) -> str:
        """Return the question in a finished prompt; "" where the last user turn holds nothing but pictures."""
        turn = self.last(prompt)
        return bare(prompt if turn is None else turn, self.drop)

    def asked(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the text of the last user message; "" where it has none."""
        for message in reversed(messages):
            if message.get("role") != "user":
                continue
            content = message.get("content")
            if isinstance(content, str):
                return bare(content, self.drop)
            parts = [part.get("text", "") for part in content or () if part.get("type") == "text"]
            return bare("\n".join(parts), self.drop)
        return ""


class _TextOnly(Exception):
    """A template changes a user's text, or prints the parts of a message."""


def _shared(one: str, other: str) -> str:
    """Return the longest common start."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _between(prompt: str, marks: Sequence[tuple[str, str]]) -> str | None:
    """Return the turn between the last of these marks, up to the first that closes it."""
    last: tuple[int, str | None] = (-1, None)
    for start, end in marks:  # of two that open at one place, the first counts
        for opened in re.finditer(start, prompt):
            closed = re.search(end, prompt[opened.end() :])
            turn = prompt[opened.end() :][: closed.start() if closed else None]
            last = max(last, (opened.start(), turn), key=lambda found: found[0])
    return last[1]
