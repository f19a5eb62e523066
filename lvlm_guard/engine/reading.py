"""How the plain model reads rows for another branch: its pictures or prompt, without what it hides, lagging behind."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lvlm_guard.engine import rows as blocks
from lvlm_guard.engine.active import within
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.lagging import Lagging, records
from lvlm_guard.engine.method import Branch
from lvlm_guard.engine.steering import Pass
from lvlm_guard.engine.subclass import plain_class


def encodes_first(model: Any) -> bool:
    """Tell whether this release's generate() encodes a model's pictures before it expands the rows to beams."""
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    return supports is not None and bool(supports()) and "image" in model.input_modalities


@dataclass
class Prepared:
    """What generate() knows before a model call: the whole rows, not only the new tokens."""

    ids: Tensor
    arguments: dict[str, Any]

    def passed(self, call: Call, done: int, prompt: int, request: list[int]) -> Pass:
        """Return these rows' model call, of which `done` tokens are cached, as what steers it sees it."""
        return Pass(call, self.ids, done, prompt, request, self.arguments.get(blocks.MASK))


@dataclass
class Reading:
    """How one branch reads the rows of a call, and what it has read."""

    branch: Branch
    view: dict[str, Any]  # what its calls have otherwise, for R rows
    first: int  # tokens of its rows' prompt
    request: list[int]  # which request each row belongs to
    lagging: Lagging  # its KV cache
    part: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]] | None = None
    """Takes the rows of a step as the branch reads them; None: as they are."""
    hidden: Hidden | None = None


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two sets of image tensors are the same; some processors give lists among them."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


class Reader:
    """The plain model, called for the other branches of one guarded call."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.plain: Any = plain_class(call.model)
        self.prompt, _ = call.asked
        self.empty: Cache | None = None  # what a branch's cache begins as; None: an empty one of the model's layers
        self._first = self.prompt.shape[1]  # tokens that a branch reads by themselves, before the answer's
        self._pictures = {blocks.ENCODED, *call.family.image_keys}  # arguments that are the global branch's own
        self._afresh: dict[str, Tensor] = {}  # on a caller's cache: what the prompt is read with by who has none

    def from_the_start(self, arguments: dict[str, Any]) -> None:
        """Learn the positions and token types, [..., B, T], that a prompt has which goes on from no caller's cache."""
        mask = arguments.get(blocks.MASK)
        if mask is None:  # transformers 5.24 drops a mask of ones alone; without any, positions stand for one row
            mask = torch.ones_like(self.prompt, device=self.call.device)
        mask = mask[:: len(mask) // len(self.prompt), : self.prompt.shape[1]]
        opening, ids = self.call.opening, self.prompt.to(self.call.device)
        self._first = opening["input_ids"].shape[1]
        self._afresh = self.call.family.replayed(self.call.model, opening, ids, mask)

    def opened(self, branch: Branch, call: Call, requests: list[int], prepared: Prepared) -> Reading:
        """Return how a branch reads a call about some requests, whose rows are prepared."""
        expand, lagging = len(prepared.ids) // len(requests), Lagging(call.family.proof.crops)
        rows = [request for request in requests for _ in range(expand)]
        if branch.hides is not None:
            hidden = self._hidden(branch.hides(call), call, prepared)
            return Reading(branch, {}, hidden.first, rows, lagging, hidden.read, hidden)
        model: Any = call.model
        if branch.prompt is None:
            ids, own = self.prompt[requests].to(call.device), None
            chosen = torch.tensor(requests, device=self.prompt.device)
            along = blocks.only_rows(self._afresh, chosen, len(self.prompt))
        else:
            made = branch.prompt(call)
            ids, mask = (made[key].to(call.device) for key in ("input_ids", blocks.MASK))
            along, own = call.family.replayed(model, made, ids, mask) | {blocks.MASK: mask}, call.images_of(made)
        encoded: dict[str, Any] = {}
        if branch.pixels is not None:
            view = branch.pixels(call)
            if own is not None or view.keys() < self.call.tensors.keys():  # it changes some of them alone
                view = (call.tensors if own is None else own) | view
        elif (kept := self._encoded(call, prepared)) and (own is None or equal(own, call.tensors)):
            view, encoded = {}, kept
        else:
            view = call.tensors if own is None else own
        if view and encodes_first(model):
            view = model._prepare_multimodal_encoder_kwargs_for_generation(dict(view))
        ids, found = model._expand_inputs_for_generation(
            expand_size=expand, is_encoder_decoder=False, input_ids=ids, **view, **along
        )
        if branch.prompt is None:
            return Reading(branch, dict(found) | encoded, self._first, rows, lagging)
        part = functools.partial(_answered, ids, found.pop(blocks.MASK), self.prompt.shape[1])
        return Reading(branch, dict(found) | encoded, ids.shape[1], rows, lagging, part)

    def _encoded(self, call: Call, prepared: Prepared) -> dict[str, Any]:
        """Return the global branch's encoded pictures for a branch that sees the same; empty where there are none."""
        if call is not self.call or self._afresh or not prepared.arguments.get(blocks.ENCODED):
            return {}
        return {key: value for key, value in prepared.arguments.items() if key in self._pictures}

    def _hidden(self, hides: Tensor, call: Call, prepared: Prepared) -> Hidden:
        rows, length = len(prepared.ids), self.prompt.shape[1]
        mask = prepared.arguments.get(blocks.MASK)
        seen = torch.ones_like(prepared.ids, dtype=torch.bool) if mask is None else mask.bool()
        hides, pictures = (
            each.to(seen.device).repeat_interleave(rows // len(each), 0) for each in (hides, call.image_positions)
        )
        return Hidden(hides, pictures, seen[:, :length])

    def new_cache(self) -> Any:
        """Return an empty cache for a branch."""
        if self.empty is not None:
            return copy.deepcopy(self.empty)
        return DynamicCache(config=self.call.model.config.get_text_config(decoder=True))

    def caught_up(
        self, reading: Reading, prepared: Prepared, needed: int, shared: Any, chosen: Tensor | None = None
    ) -> Tensor:
        """Run a branch over all that it skipped; returns its last logits, [R, needed, V].

        It reads the prompt as generate() read it, then the answer: what belongs to the prompt alone need not fit both
        (token types that don't grow, a placeholder among the answer's tokens). Without a cache it reads all at once.

        Args:
            reading: how it reads.
            prepared: the rows.
            needed: for how many positions at the end logits are wanted.
            shared: generate()'s cache.
            chosen: which rows of that these are; None: all.
        """
        lagging, hidden, view = reading.lagging, reading.hidden, reading.view
        seen = prepared if reading.part is None else Prepared(*reading.part(prepared.ids, prepared.arguments))
        length, begun, stops = seen.ids.shape[1], 0, [seen.ids.shape[1]]
        if shared is not None:
            begun = lagging.align(seen.ids, needed, len(seen.ids) // len(self.prompt))
            if lagging.cache is None:
                cache = self.new_cache()
                lagging.begin(cache, shared)
                if hidden is not None:
                    hidden.seed(shared, cache, chosen)
                    begun = hidden.shared
            if self.call.family.proof.way == "steps":
                stops = list(range(max(reading.first, begun + 1), length + 1))
            elif begun < reading.first < length:
                stops = [reading.first, length]
        self.call.trace.local_forwards += 1
        logits, done = [], begun
        along = blocks.grown({key: view[key] for key in view.keys() & blocks.GROWN}, length)
        for stop in stops:
            wanted = stop - max(done, length - needed)
            part = Prepared(seen.ids[:, :stop], blocks.until(seen.arguments, stop, length))
            around = reading.branch.around or nullcontext
            with around(part.passed(self.call, done, reading.first, reading.request)):
                read = self._read(part, view | blocks.until(along, stop, length), lagging.cache, done, max(wanted, 1))
            logits += [read] if wanted > 0 else []
            done = stop
            if stop < length and records(lagging.cache):
                lagging.cache.crop(0)  # it lets go of its past there, and older releases read on only after that
        lagging.ran(seen.ids, begun)
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    def _read(self, prepared: Prepared, view: dict[str, Any], cache: Cache | None, done: int, needed: int) -> Tensor:
        model: Any = self.call.model
        ids = prepared.ids
        arguments = {key: value for key, value in prepared.arguments.items() if key not in self._pictures} | view
        if cache is not None:
            arguments[blocks.CACHE] = cache
        arguments["next_sequence_length"] = ids.shape[1] - done if done else None
        arguments["is_first_iteration"] = done == 0
        arguments["logits_to_keep"] = needed
        inputs = self.plain.prepare_inputs_for_generation(model, ids, **arguments)
        for key in ("output_attentions", "output_hidden_states"):
            inputs.pop(key, None)
        with within(model, None):
            outputs = self.plain.__call__(model, **inputs, return_dict=True)
        self.call.trace.local_tokens += int(ids.shape[0] * (ids.shape[1] - done))
        logits: Tensor = outputs.logits[:, -needed:]
        return logits


def _answered(
    own: Tensor, mask: Tensor, prompt: int, ids: Tensor, arguments: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Return rows of the branch's own prompt [R, T'] and the answer so far, and generate()'s arguments that hold there.

    `ids` and `arguments` are those of whole rows of the global branch, [R, T], whose prompt has `prompt` tokens.
    """
    found = {key: value for key, value in arguments.items() if not blocks.along(value, ids.shape[1])}
    answer, seen = ids[:, prompt:], arguments.get(blocks.MASK)
    tail = torch.ones_like(answer, dtype=mask.dtype) if seen is None else seen[:, prompt:].to(mask)
    found[blocks.MASK] = torch.cat([mask, tail], -1)
    return torch.cat([own, answer], -1), found
