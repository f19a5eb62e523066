"""How the plain model reads rows for another branch: its pictures or prompt, without what it hides, lagging behind.

A branch runs only at steps where it matters, and then catches up all it skipped in one chunk. Its KV cache is a pure
function of (request, tokens). So nothing of generate()'s bookkeeping has to be followed: at each run the tokens that
the cache holds are compared with the tokens of the rows as they are now. Rows that beam search moved are found by
their tokens, and draft tokens that assisted decoding rejected no longer match and are dropped.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lvlm_guard.engine import rows as blocks
from lvlm_guard.engine.call import Call, within
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.method import Branch
from lvlm_guard.engine.steering import Pass
from lvlm_guard.engine.subclass import plain_class


def encodes_first(model: Any) -> bool:
    """Tell whether this release's generate() encodes a model's pictures before it expands the rows to beams."""
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    return supports is not None and bool(supports()) and "image" in model.input_modalities


class Prepared(NamedTuple):
    """What generate() knows before a model call: the whole rows, not only the new tokens."""

    ids: Tensor  # [R, T]
    arguments: dict[str, Any]


class Reader:
    """The plain model, called for the other branches of one guarded call."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.plain: Any = plain_class(call.model)
        self.prompt, _ = call.asked
        self.shared: Any = None  # generate()'s cache
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
        expand = len(prepared.ids) // len(requests)
        rows = [request for request in requests for _ in range(expand)]
        if branch.hides is not None:
            mask = prepared.arguments.get(blocks.MASK)
            seen = (torch.ones_like(prepared.ids) if mask is None else mask)[:, : self.prompt.shape[1]].bool()
            hidden = Hidden(branch.hides(call), call.image_positions, seen)
            return Reading(self, branch, {}, hidden.first, rows, hidden.read, hidden)
        model: Any = call.model
        if branch.prompt is None:
            ids, own = self.prompt[requests].to(call.device), None
            along = blocks.only_rows(self._afresh, torch.tensor(requests), len(self.prompt))
        else:
            made = branch.prompt(call)
            ids, mask = (made[key].to(call.device) for key in ("input_ids", blocks.MASK))
            along, own = call.family.replayed(model, made, ids, mask) | {blocks.MASK: mask}, call.images_of(made)
        # pictures that the global branch has encoded serve a branch that sees the same
        given = prepared.arguments if call is self.call and not self._afresh else {}
        encoded = {key: given[key] for key in given.keys() & self._pictures if given.get(blocks.ENCODED)}
        if branch.pixels is not None:
            view, encoded = branch.pixels(call), {}
            if own is not None or view.keys() < self.call.tensors.keys():  # it changes some of them alone
                view = (call.tensors if own is None else own) | view
        elif encoded and (own is None or _equal(own, call.tensors)):
            view = {}
        else:
            view, encoded = call.tensors if own is None else own, {}
        if view and encodes_first(model):
            view = model._prepare_multimodal_encoder_kwargs_for_generation(dict(view))
        ids, found = model._expand_inputs_for_generation(
            expand_size=expand, is_encoder_decoder=False, input_ids=ids, **view, **along
        )
        if branch.prompt is None:
            return Reading(self, branch, dict(found) | encoded, self._first, rows)
        part = functools.partial(_answered, ids, found.pop(blocks.MASK), self.prompt.shape[1])
        return Reading(self, branch, dict(found) | encoded, ids.shape[1], rows, part)

    def new_cache(self) -> Any:
        """Return an empty cache for a branch."""
        if self.empty is not None:
            return copy.deepcopy(self.empty)
        return DynamicCache(config=self.call.model.config.get_text_config(decoder=True))

    def read(self, prepared: Prepared, view: dict[str, Any], cache: Cache | None, done: int, needed: int) -> Tensor:
        """Run the plain model on from a cache of `done` tokens; returns its last logits, [R, needed, V]."""
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


@dataclass
class Reading:
    """How one branch reads the rows of a call, and what it has read."""

    reader: Reader
    branch: Branch
    view: dict[str, Any]  # what its calls have otherwise, for R rows
    first: int  # tokens of its rows' prompt
    request: list[int]  # which request each row belongs to
    part: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]] | None = None
    """Takes the rows of a step as the branch reads them; None: as they are."""
    hidden: Hidden | None = None
    cache: Any = None  # its own, of the tokens `_ids`, [R, length]
    _ids: Tensor | None = None
    _whole: int = 0  # tokens that can't be taken back: a sliding window has let go of those before them

    def caught_up(self, prepared: Prepared, needed: int, chosen: Tensor | None = None) -> Tensor:
        """Run the branch over all that it skipped; returns its last logits, [R, needed, V].

        It reads the prompt as generate() read it, then the answer: what belongs to the prompt alone need not fit both
        (token types that don't grow, a placeholder among the answer's tokens). Without a cache it reads all at once.

        Args:
            prepared: the rows.
            needed: for how many positions at the end logits are wanted.
            chosen: which rows of generate()'s cache these are; None: all.
        """
        reader, call = self.reader, self.reader.call
        seen = prepared if self.part is None else Prepared(*self.part(*prepared))
        length, begun, stops = seen.ids.shape[1], 0, [seen.ids.shape[1]]
        if reader.shared is not None:
            begun = self._aligned(seen.ids, needed)
            if self.cache is None:
                self.cache = reader.new_cache()
                if _records(reader.shared):
                    self.cache.activate_past_recording()
                if self.hidden is not None:
                    self.hidden.seed(reader.shared, self.cache, chosen)
                    begun = self.hidden.shared
            if call.family.proof.way == "steps":
                stops = list(range(max(self.first, begun + 1), length + 1))
            elif begun < self.first < length:
                stops = [self.first, length]
        call.trace.local_forwards += 1
        logits, done = [], begun
        along = blocks.grown({key: self.view[key] for key in self.view.keys() & blocks.GROWN}, length)
        for stop in stops:
            wanted = stop - max(done, length - needed)
            part = Prepared(seen.ids[:, :stop], blocks.until(seen.arguments, stop, length))
            with (self.branch.around or nullcontext)(
                Pass(call, part.ids, done, self.first, self.request, part.arguments.get(blocks.MASK))
            ):
                view = self.view | blocks.until(along, stop, length)
                read = reader.read(part, view, self.cache, done, max(wanted, 1))
            logits += [read] if wanted > 0 else []
            done = stop
            if stop < length and _records(self.cache):
                self.cache.crop(0)  # it lets go of its past there, and older releases read on only after that
        if self.cache is not None:
            slides = any(getattr(layer, "is_sliding", False) for layer in self.cache.layers)
            self._ids, self._whole = seen.ids.clone(), slides * (begun if _records(self.cache) else length)
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    def _aligned(self, ids: Tensor, needed: int) -> int:
        """Make the cache hold a prefix of each row, of 0 to T - needed tokens, and return that prefix's length.

        A row takes its cache from a row of its request. What can't be taken back is dropped, and read anew.
        """
        old = self._ids
        if old is None or len(old) != len(ids):
            return self.drop()
        shared = length = min(old.shape[1], ids.shape[1])
        if not torch.equal(old[:, :length], ids[:, :length]):
            source, shared = _sources(old[:, :length], ids[:, :length], len(ids) // len(self.reader.prompt))
            self.cache.reorder_cache(source)
        shared = min(shared, ids.shape[1] - needed)
        if shared <= 0 or shared < min(old.shape[1], self._whole):
            return self.drop()
        # a cache that records lets go of its past where it is cropped
        if shared == old.shape[1] and not _records(self.cache):
            return shared
        with suppress(RuntimeError):  # past a sliding window, after it has cropped the layers before
            if self.reader.call.family.proof.crops:
                self.cache.crop(shared - old.shape[1])
                return shared
        return self.drop()

    def drop(self) -> int:
        """Let go of the cache; returns how many tokens are cached then."""
        self.cache, self._ids = None, None
        return 0

    def take_back(self, tokens: int) -> None:
        """Crop the cache; raises RuntimeError where it can't be."""
        if self._ids is not None:
            self.cache.crop(-tokens)
            self._ids = self._ids[:, :-tokens]


def _records(cache: Cache | None) -> bool:
    """Tell whether a cache with a sliding window keeps what is about to leave it until it is cropped, for drafts."""
    return cache is not None and any(getattr(layer, "record_past", False) for layer in cache.layers)


def _sources(old: Tensor, new: Tensor, per_request: int) -> tuple[Tensor, int]:
    """For each new row, the old row of its request with the longest common prefix, and the shortest of those."""
    a, b = new.view(-1, per_request, 1, new.shape[1]), old.view(-1, 1, per_request, old.shape[1])
    best = (a == b).long().cumprod(-1).sum(-1).max(-1)  # over [requests, new row, old row]
    first = torch.arange(len(a), device=new.device)[:, None] * per_request
    return (best.indices + first).flatten(), int(best.values.min())


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two sets of image tensors are the same; some processors give lists among them."""
    pairs = ((one[key], other.get(key)) for key in one)
    same = (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)
    return one.keys() == other.keys() and all(same)


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
