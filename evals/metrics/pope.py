"""Answers to yes/no questions, as POPE and the benchmarks after it read them: one sound reading, and those of scripts.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023, arXiv:2305.10355.
Scores are in `yes_no`.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from lvlm_guard.evals.errors import DataError

Reading = Literal["word", "official", "agla", "stock", "repope", "mme", "amber"]
Answer = Literal["yes", "no"]

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"(?<=\w)[.!?]")
_DECISIVE = re.compile(r"\b(yes|no|not)\b")
_READ: dict[str, Answer] = {"yes": "yes", "no": "no", "not": "no"}


def read(answer: str, reading: Reading = "word", label: Answer | None = None) -> Answer | None:
    """Return what an answer says, None where that can't be read; raises `DataError` of an unknown reading.

    - "word", sound: the first word, else the first whole word yes, no or not of the first sentence;
    - "official", RUCAIBox/POPE at 3df3ba1: no if the first sentence holds a token No, not or no, else yes, even for "";
    - "agla", Lackel/AGLA at efa1263 and DAMO-NLP-SG/VCD at d6568ff: by the letters of the right answer, the `label`
      (`DataError` without); an answer without them says the other word;
    - "stock", lmms-eval 0.7: the whole answer must be the word;
    - "repope", YanNeu/RePOPE at bcf22e5, DASH-B at 1538d01: the letters yes anywhere ("eyes"), else no ("unknown");
    - "mme": the same of the first four characters, so that two leading blanks hide a yes;
    - "amber", junyangwang0410/AMBER at 534babf: just Yes or No.
    """
    text = answer.lower()
    match reading:
        case "word":
            first = _WORD.search(text)
            if first is not None and first.group() not in _READ:
                first = _DECISIVE.search(_SENTENCE_END.split(text, maxsplit=1)[0])
            return _READ[first.group()] if first else None
        case "official":
            # NO, "No!", "no;", Not, isn't and the empty answer all read as yes, "Yes, there is no doubt" as no
            tokens = answer.split(".", 1)[0].replace(",", "").split(" ")
            return "no" if {"No", "not", "no"}.intersection(tokens) else "yes"
        case "agla":
            if label is None:
                raise DataError("The reading 'agla' depends on the right answer: give label='yes' or 'no'.")
            return label if label in text else "no" if label == "yes" else "yes"
        case "stock" | "amber":
            word = text.strip() if reading == "stock" or answer in ("Yes", "No") else ""
            return "yes" if word == "yes" else "no" if word == "no" else None
        case "repope" | "mme":
            searched = text[:4] if reading == "mme" else text
            return "yes" if "yes" in searched else "no" if "no" in searched else None
    raise DataError(f"No reading is called {reading!r}. Known: {', '.join(get_args(Reading))}.")
