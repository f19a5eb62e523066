"""Requests of lmms-eval, in either of its two layouts, as items that our own runs ask too, and how each is answered."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lvlm_guard.errors import UnsupportedCallError, did_you_mean
from lvlm_guard.evals.lmms.index import REFUSED
from lvlm_guard.evals.spec.items import Item

KEYS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "until")
MOST_TOKENS = 1024  # where a task names no limit; as lmms-eval's own LLaVA
Talk = list[dict[str, Any]]


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


def read_generation(given: Mapping[str, Any], task: str) -> Generation:
    """Return a document's generation arguments, honoured or refused by name; None is one that is not given.

    Without do_sample, a temperature, top_p or top_k means nothing (stock tasks carry `temperature: 0`, some
    `top_p: 0`); where do_sample is not given at all, a temperature above 0 asks for sampling, as lmms-eval has it.
    Raises `UnsupportedCallError`, which names the task, for an argument or value that can't be honoured.
    """
    known = {name: value for name, value in given.items() if value is not None}

    def refused(why: str) -> UnsupportedCallError:
        return UnsupportedCallError(f"Task {task}: {why}")

    def number(name: str, default: Any, least: int | None = None) -> Any:
        value = known.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise refused(f"{name} is {value!r}: give a number.")
        if least is not None and (value != int(value) or value < least):
            raise refused(f"{name} is {value:g}: give a whole number of at least {least}.")
        return float(value) if least is None else int(value)

    if strange := [name for name in given if name not in KEYS]:
        known_ones = f"lvlm_guard honours {', '.join(KEYS)}; leave others out of generation_kwargs and --gen_kwargs."
        near = did_you_mean(strange[0], KEYS)
        raise refused(f"the generation argument {strange[0]!r} is not understood. {near}{known_ones}")
    until = known.get("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(stop, str) for stop in stops):
        raise refused(f"until is {until!r}: give texts.")
    sample = known.get("do_sample", number("temperature", 0) > 0)
    if not isinstance(sample, bool):
        raise refused(f"do_sample is {sample!r}: give true or false.")
    beams, tokens = number("num_beams", 1, 1), number("max_new_tokens", MOST_TOKENS, 1)
    if not sample:
        return Generation(tokens, stops, num_beams=beams)
    if beams > 1:
        how = "sample with num_beams=1, or search with do_sample=False"
        raise refused(f"do_sample=True with num_beams={beams} is not supported: {how}.")
    temperature, top_p = number("temperature", 1), number("top_p", 1)
    if not temperature > 0:
        how = "give a temperature above 0, or do_sample=False for greedy answers"
        raise refused(f"do_sample=True with temperature={temperature:g} is no distribution to draw from: {how}.")
    if not 0 < top_p <= 1:
        raise refused(f"top_p is {top_p:g}: give a share above 0 and up to 1.")
    return Generation(tokens, stops, True, temperature, top_p, number("top_k", 0, 0))


@dataclass(frozen=True)
class Request:
    """One document to be answered. `repeat`: how many times it was asked before in this run (`--repeats`); each has a
    seed of its own. `say` makes a document's chat messages, as lmms-eval writes them, and `documents` are all of the
    split."""

    task: str
    split: str
    doc_id: int
    repeat: int
    generation: Generation
    say: Callable[[Any], Talk]
    documents: Any

    def item(self) -> Item:
        """Return the document as an item, its pictures decoded; raises `UnsupportedCallError` or `ImageError`."""
        from lmms_eval.protocol import ChatMessages

        from lvlm_guard.images import any_picture

        talk = ChatMessages(messages=self.say(self.documents[self.doc_id])).to_hf_messages()
        pictures, texts = [], []
        for part in (part for message in talk for part in message["content"]):
            if part["type"] == "image":
                part["image"] = any_picture(part["image"])
                pictures.append(part["image"])
            elif part["type"] == "text":
                texts.append(part["text"])
            else:
                at = f"Document {self.doc_id} of {self.task}"
                raise UnsupportedCallError(f"{at} has a {part['type']}: lvlm_guard answers about pictures.")
        key = str(self.doc_id)
        return Item(key, f"{self.task} {key}", "\n".join(texts), tuple(pictures), talk=lambda: talk)

    def digest(self, item: Item, seed: int) -> str:
        """Return a name of the document's question: its text, pictures, generation arguments and seed."""
        texts = [[m["role"], [part.get("text", "[picture]") for part in m["content"]]] for m in item.conversation()]
        told = [self.task, self.split, self.doc_id, seed, asdict(self.generation), texts]
        whole = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for image in item.pictures():
            whole.update(f"{image.size}".encode() + image.tobytes())
        return whole.hexdigest()[:32]


def read_requests(requests: Iterable[Any], documents: Mapping[str, Mapping[str, Any]]) -> list[Request | None]:
    """Return requests of lmms-eval (`Instance`s), in their order; None for one that only fills up a process's share.

    They come in the chat layout (context, doc_to_messages, gen_kwargs, doc_id, task, split), or in the simple one
    (context, gen_kwargs, doc_to_visual, ...), which a chat model gets for tasks given as a dict or as a folder;
    `documents` is `lmms.task_dict`. Raises `UnsupportedCallError` where a task or generation argument is refused.
    """
    times: Counter[tuple[str, str, int, int]] = Counter()
    found: list[Request | None] = []
    for request in requests:
        if (request.metadata or {}).get("__padding_only__"):
            found.append(None)
            continue
        context, second, third, doc_id, task, split = request.args
        if task in REFUSED:
            raise UnsupportedCallError(f"{task} is not run on lvlm_guard: {REFUSED[task]}.")
        say, wanted = (second, third) if callable(second) else (partial(_simple, context, third), second)
        where, asked = (task, split, doc_id), read_generation(wanted, task)
        found.append(Request(*where, times[*where, request.idx], asked, say, documents[task][split]))
        times[*where, request.idx] += 1
    return found


def _simple(context: str, visuals: Callable[[Any], Any], document: Any) -> Talk:
    pictures = [{"type": "image", "url": visual} for visual in visuals(document) or ()]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": context}]}]
