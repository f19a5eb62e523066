"""A task's generation arguments, as lmms-eval hands them to a model: honoured, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard.errors import UnsupportedCallError, did_you_mean

KEYS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "until")
MOST_TOKENS = 1024  # where a task names no limit; as lmms-eval's own LLaVA


@dataclass(frozen=True)
class Generation:
    """How a document is answered; `until` are texts that end it, and the draw's arguments are None where none is."""

    max_new_tokens: int = MOST_TOKENS
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1

    def options(self) -> dict[str, Any]:
        """Return further arguments of generate(), as a `Decoder` holds them."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"do_sample": self.do_sample, "num_beams": self.num_beams} | (drawn if self.do_sample else {})


def read(given: Mapping[str, Any], task: str) -> Generation:
    """Return a document's generation arguments; a value of None is one that is not given.

    Without do_sample, a temperature, top_p or top_k means nothing (stock tasks carry `temperature: 0`, some
    `top_p: 0`); where do_sample is not given at all, a temperature above 0 asks for sampling, as lmms-eval has it.
    Raises `UnsupportedCallError`, which names the task, for an argument or value that can't be honoured.
    """
    known = {name: value for name, value in given.items() if value is not None}

    def refused(why: str) -> UnsupportedCallError:
        return UnsupportedCallError(f"Task {task}: {why}")

    def number(name: str, default: float) -> float:
        value = known.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise refused(f"{name} is {value!r}: give a number.")
        return float(value)

    def whole(name: str, default: int, least: int) -> int:
        value = number(name, default)
        if value != int(value) or value < least:
            raise refused(f"{name} is {value:g}: give a whole number of at least {least}.")
        return int(value)

    strange = next((name for name in given if name not in KEYS), None)
    if strange is not None:
        raise refused(
            f"the generation argument {strange!r} is not understood. {did_you_mean(strange, KEYS)}lvlm_guard honours "
            f"{', '.join(KEYS)}; leave others out of generation_kwargs and --gen_kwargs."
        )
    until = known.get("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(stop, str) for stop in stops):
        raise refused(f"until is {until!r}: give texts.")
    sample = known.get("do_sample", number("temperature", 0) > 0)
    if not isinstance(sample, bool):
        raise refused(f"do_sample is {sample!r}: give true or false.")
    beams, tokens = whole("num_beams", 1, 1), whole("max_new_tokens", MOST_TOKENS, 1)
    if not sample:
        return Generation(tokens, stops, num_beams=beams)
    if beams > 1:
        raise refused(
            f"do_sample=True with num_beams={beams} is not supported: sample with num_beams=1, or search with "
            "do_sample=False."
        )
    temperature, top_p = number("temperature", 1.0), number("top_p", 1.0)
    if not temperature > 0:
        raise refused(
            f"do_sample=True with temperature={temperature:g} is no distribution to draw from: give a temperature "
            "above 0, or do_sample=False for greedy answers."
        )
    if not 0 < top_p <= 1:
        raise refused(f"top_p is {top_p:g}: give a share above 0 and up to 1.")
    return Generation(tokens, stops, True, temperature, top_p, whole("top_k", 0, 0))
