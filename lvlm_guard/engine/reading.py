"""How the plain model reads rows for another branch: its pictures or prompt, without what it hides, from a cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lvlm_guard.engine import rows as blocks
from lvlm_guard.engine.active import within
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.lagging import records
from lvlm_guard.engine.method import Branch
from lvlm_guard.engine.steering import Pass


def encodes_first(model: Any) -> bool:
    """Tell whether this release's generate() encodes a model's pictures before it expands the rows to beams."""
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    return supports is not None and bool(supports()) and "image" in model.input_modalities


@dataclass
class Prepared:
    """What generate() knows before a model call: the whole rows, not only the new tokens."""

    ids: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_cache(self) -> bool:
        """Whether the call is one with a cache."""
        return self.arguments.get("use_cache", True) is not False

    def passed(self, call: Call, done: int, prompt: int, request: list[int]) -> Pass:
        """Return these rows' model call, of which `done` tokens are cached, as what steers it sees it."""
        return Pass(call, self.ids, done, prompt, request, self.arguments.get(blocks.MASK))


@dataclass
class OwnPrompt:
    """A prompt of a branch's own before the same answers.

    Args:
        ids, mask: its tokens and which are no padding, [R, T'].
        prompt: tokens of the call's prompt.
    """

    ids: Tensor
    mask: Tensor
    prompt: int

    def read(self, ids: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the branch's own rows, [R, T' + answered], and generate()'s arguments that hold for them."""
        length, answered = ids.shape[1], ids.shape[1] - self.prompt
        found = {
            key: value
            for key, value in arguments.items()
            if not (isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == length)
        }
        mask = arguments.get(blocks.MASK)
        tail = self.mask.new_ones(len(ids), answered) if mask is None else mask[:, self.prompt :].to(self.mask)
        found[blocks.MASK] = torch.cat([self.mask, tail], -1)
        return torch.cat([self.ids, ids[:, self.prompt :]], -1), found


@dataclass
class Reading:
    """How one branch reads the rows of a call.

    Args:
        branch: what it changes.
        view: what its calls have otherwise, for R rows.
        first: tokens of its rows' prompt.
        request: which request each row belongs to.
        part: takes the rows of a step as the branch reads them; None: as they are.
        hidden: which columns it hides.
    """

    branch: Branch
    view: dict[str, Any]
    first: int
    request: list[int]
    part: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]] | None = None
    hidden: Hidden | None = None

    def rows(self, prepared: Prepared) -> Prepared:
        """Return the rows of a step as the branch reads them."""
        return prepared if self.part is None else Prepared(*self.part(prepared.ids, prepared.arguments))

    def around(self, call: Call, prepared: Prepared, done: int) -> AbstractContextManager[None]:
        """Return the context of one of its model calls."""
        if self.branch.around is None:
            return nullcontext()
        return self.branch.around(prepared.passed(call, done, self.first, self.request))


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two sets of image tensors are the same; some processors give lists among them."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


class Reader:
    """The plain model, called for the other branches of one guarded call.

    Args:
        call: what the call is about.
        plain: the class below the guard, whose methods are called.
        prompt: prompt tokens, [B, T].
    """

    def __init__(self, call: Call, plain: type[Any], prompt: Tensor) -> None:
        self.call, self.plain, self.prompt = call, plain, prompt
        self._first = prompt.shape[1]  # tokens that a branch reads by themselves, before the answer's
        self._afresh: dict[str, Tensor] = {}  # on a caller's cache: what the prompt is read with by who has none

    def from_the_start(self, arguments: dict[str, Any]) -> None:
        """Learn the prompt's positions and token types as generate() makes them where nothing is cached, [..., B, T].

        What it made for this call goes on from the caller's cache.
        """
        mask = arguments.get(blocks.MASK)
        if mask is None:  # transformers 5.24 drops a mask of ones alone; without any, positions stand for one row
            mask = torch.ones_like(self.prompt, device=self.call.device)
        mask = mask[:: len(mask) // len(self.prompt), : self.prompt.shape[1]]
        opening, ids = self.call.opening, self.prompt.to(self.call.device)
        self._first = opening["input_ids"].shape[1]
        self._afresh = self.call.family.replayed(self.call.model, opening, ids, mask)

    def opened(self, branch: Branch, call: Call, requests: list[int], prepared: Prepared) -> Reading:
        """Return how a branch reads a call about some requests, whose rows are prepared."""
        expand = len(prepared.ids) // len(requests)
        rows = [request for request in requests for _ in range(expand)]
        if branch.hides is not None:
            hidden = self._hidden(branch.hides(call), call, prepared)
            return Reading(branch, {}, hidden.first, rows, hidden.read, hidden)
        if branch.prompt is not None:
            return self._own_prompt(branch, branch.prompt(call), call, prepared, rows)
        if branch.pixels is None and (encoded := self._encoded(call, prepared)):
            return Reading(branch, encoded, self._first, rows)
        view: dict[str, Any] = dict(branch.pixels(call)) if branch.pixels else dict(call.tensors)
        if view.keys() < self.call.tensors.keys():  # it changes some of them alone
            view = call.tensors | view
        chosen = torch.tensor(requests, device=self.prompt.device)
        afresh = blocks.only_rows(self._afresh, chosen, len(self.prompt))
        _, view = self._expanded(self.prompt[requests], view, afresh, expand)
        return Reading(branch, view, self._first, rows)

    def _encoded(self, call: Call, prepared: Prepared) -> dict[str, Any]:
        """Return the global branch's encoded pictures, for R rows; empty where there are none for these requests.

        A branch that sees the same pictures need not encode them again.
        """
        if call is not self.call or self._afresh or not prepared.arguments.get(blocks.ENCODED):
            return {}
        keys = {blocks.ENCODED, *call.family.image_keys}
        return {key: value for key, value in prepared.arguments.items() if key in keys}

    def _expanded(
        self, prompt: Tensor, view: dict[str, Any], along: dict[str, Any], expand: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return a prompt and what its calls have otherwise, as generate() expands them to `expand` rows a request."""
        model: Any = self.call.model
        if view and encodes_first(model):
            view = model._prepare_multimodal_encoder_kwargs_for_generation(view)
        ids, expanded = model._expand_inputs_for_generation(
            expand_size=expand, is_encoder_decoder=False, input_ids=prompt.to(self.call.device), **view, **along
        )
        return ids, dict(expanded)

    def _own_prompt(
        self, branch: Branch, made: dict[str, Any], call: Call, prepared: Prepared, rows: list[int]
    ) -> Reading:
        ids, mask = (made[key].to(self.call.device) for key in ("input_ids", blocks.MASK))
        view: dict[str, Any] = call.images_of(made)
        encoded: dict[str, Any] = {}
        if branch.pixels is not None:
            view |= branch.pixels(call)
        elif (kept := self._encoded(call, prepared)) and equal(view, call.tensors):
            view, encoded = {}, kept
        along = call.family.replayed(call.model, made, ids, mask)
        expand = len(rows) // len(ids)
        ids, expanded = self._expanded(ids, view, along | {blocks.MASK: mask}, expand)
        own = OwnPrompt(ids, expanded.pop(blocks.MASK), self.prompt.shape[1])
        return Reading(branch, expanded | encoded, ids.shape[1], rows, own.read)

    def _hidden(self, hides: Tensor, call: Call, prepared: Prepared) -> Hidden:
        rows, length = len(prepared.ids), self.prompt.shape[1]
        mask = prepared.arguments.get(blocks.MASK)
        seen = torch.ones_like(prepared.ids, dtype=torch.bool) if mask is None else mask.bool()
        hides, pictures = (
            each.to(seen.device).repeat_interleave(rows // len(each), 0) for each in (hides, call.image_positions)
        )
        return Hidden(hides, pictures, seen[:, :length])

    def new_cache(self) -> DynamicCache:
        """Return an empty cache of the model's layers."""
        return DynamicCache(config=self.call.model.config.get_text_config(decoder=True))

    def read(self, reading: Reading, seen: Prepared, cache: Cache | None, done: int, needed: int) -> Tensor:
        """Run a branch over rows of which `done` tokens are cached; returns the last `needed` logits, [R, needed, V].

        With a cache it reads the prompt as generate() read it, then the answer: what belongs to the prompt alone need
        not fit both (token types that don't grow, a placeholder among the answer's tokens).
        """
        length, view, first = seen.ids.shape[1], reading.view, reading.first
        stops = [length]
        if cache is not None and done < first < length:
            stops = [first, length]
        if cache is not None and self.call.family.proof.way == "steps":
            stops = list(range(max(first, done + 1), length + 1))
        self.call.trace.local_forwards += 1
        logits = []
        along = blocks.grown({key: view[key] for key in view.keys() & blocks.GROWN}, length)
        for stop in stops:
            wanted = stop - max(done, length - needed)
            part = Prepared(seen.ids[:, :stop], blocks.until(seen.arguments, stop, length))
            with reading.around(self.call, part, done):
                read = self._read(part, view | blocks.until(along, stop, length), cache, done, max(wanted, 1))
            logits += [read] if wanted > 0 else []
            done = stop
            if cache is not None and records(cache) and stop < length:
                cache.crop(0)  # it lets go of its past there, and older releases read on only after that
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    def _read(self, prepared: Prepared, view: dict[str, Any], cache: Cache | None, done: int, needed: int) -> Tensor:
        model: Any = self.call.model
        ids = prepared.ids
        pictures = {blocks.ENCODED, *self.call.family.image_keys}  # of the global branch
        arguments = {key: value for key, value in prepared.arguments.items() if key not in pictures} | view
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
