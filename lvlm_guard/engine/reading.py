"""How the plain model reads rows for another branch: with its pictures, without what it hides, from what is cached."""

from __future__ import annotations

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


class Reader:
    """The plain model, called for the other branches of one guarded call.

    Args:
        call: what the call is about.
        plain: the class below the guard, whose methods are called.
        prompt: prompt tokens, [B, T].
    """

    def __init__(self, call: Call, plain: type[Any], prompt: Tensor) -> None:
        self.call, self.plain, self.prompt = call, plain, prompt
        self.first = prompt.shape[1]  # tokens that a branch reads by themselves, before the answer's
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
        self.first = opening["input_ids"].shape[1]
        self._afresh = self.call.family.replayed(self.call.model, opening, ids, mask)

    def view(self, branch: Branch, call: Call, requests: list[int], expand: int) -> dict[str, Any]:
        """Return what a branch's call has otherwise, for some requests, `expand` rows each."""
        model: Any = call.model
        assert branch.pixels is not None
        view: dict[str, Any] = dict(branch.pixels(call))
        if view.keys() < self.call.tensors.keys():  # it changes some of them alone
            view = call.tensors | view
        if encodes_first(model):
            view = model._prepare_multimodal_encoder_kwargs_for_generation(view)
        chosen = torch.tensor(requests, device=self.prompt.device)
        view |= blocks.only_rows(self._afresh, chosen, len(self.prompt))
        prompt = self.prompt[requests]
        _, expanded = model._expand_inputs_for_generation(
            expand_size=expand, is_encoder_decoder=False, input_ids=prompt.to(call.device), **view
        )
        return dict(expanded)

    def hidden(self, branch: Branch, call: Call, prepared: Prepared) -> Hidden:
        """Return which columns of the rows of a call a branch hides."""
        assert branch.hides is not None
        rows, length = len(prepared.ids), self.prompt.shape[1]
        mask = prepared.arguments.get(blocks.MASK)
        seen = torch.ones_like(prepared.ids, dtype=torch.bool) if mask is None else mask.bool()
        hides, pictures = (
            each.to(seen.device).repeat_interleave(rows // len(each), 0)
            for each in (branch.hides(call), call.image_positions)
        )
        return Hidden(hides, pictures, seen[:, :length])

    def new_cache(self) -> DynamicCache:
        """Return an empty cache of the model's layers."""
        return DynamicCache(config=self.call.model.config.get_text_config(decoder=True))

    def read(
        self, prepared: Prepared, view: dict[str, Any], cache: Cache | None, done: int, needed: int, first: int
    ) -> Tensor:
        """Run a branch over rows of which `done` tokens are cached; returns its last `needed` logits, [R, needed, V].

        With a cache it reads the prompt, `first` tokens, as generate() read it, then the answer: what belongs to the
        prompt alone need not fit both (token types that don't grow, a placeholder among the answer's tokens).
        """
        length = prepared.ids.shape[1]
        stops = [length]
        if cache is not None and done < first < length:
            stops = [first, length]
        if cache is not None and self.call.family.proof.way == "steps":
            stops = list(range(max(first, done + 1), length + 1))
        self.call.trace.local_forwards += 1
        logits = []
        along = blocks.grown({key: view[key] for key in self._afresh if key in view}, length)
        for stop in stops:
            wanted = stop - max(done, length - needed)
            part = Prepared(prepared.ids[:, :stop], blocks.until(prepared.arguments, stop, length))
            read = self._read(part, view | blocks.until(along, stop, length), cache, done, max(wanted, 1))
            logits += [read] if wanted > 0 else []
            done = stop
            if cache is not None and records(cache) and stop < length:
                cache.crop(0)  # it lets go of its past there, and older releases read on only after that
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    def _read(self, prepared: Prepared, view: dict[str, Any], cache: Cache | None, done: int, needed: int) -> Tensor:
        model: Any = self.call.model
        ids = prepared.ids
        pictures = {"mm_encoder_outputs", *self.call.family.image_keys}  # of the global branch
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
