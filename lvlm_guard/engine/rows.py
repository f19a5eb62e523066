"""N branches as blocks of rows, [global R; branch 1 R; ...], of one forward and one KV cache.

Best where decoding is bound by memory (a GPU at small batch): the weights are read once for all branches. Each branch
has read the prompt by itself; then its rows are appended to the global cache. generate() sees R rows; the cache holds
N * R, so its row operations act block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

POSITIONS, TYPES, MASK = "position_ids", "mm_token_type_ids", "attention_mask"
ENCODED = "mm_encoder_outputs"  # pictures that generate() encoded before it expanded the rows
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
"""What this release of transformers calls the cache among a model's arguments; renamed in 5.24."""


PLAIN = {DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer}
"""Layers of a cache whose states are plain [rows, heads, length, size] tensors; what derives from them may not be."""


def stackable(cache: Cache | None, config: Any) -> bool:
    """Tell whether the rows of every layer of a cache can be stacked, and none has room for those of one branch alone.

    Of a model that was proven to stack, whose `config` this is, what its own dynamic cache is made of stacks too.
    """
    if cache is None:
        return True
    kinds: set[type[Any]] = {type(layer) for layer in cache.layers} - PLAIN
    if kinds and type(cache) is DynamicCache:
        kinds -= {type(layer) for layer in DynamicCache(config=config).layers}
    full = any(isinstance(layer, StaticLayer) and layer.is_initialized for layer in cache.layers)
    return not (kinds or full or getattr(cache, "offloading", False))


def states(layer: Any) -> Iterator[tuple[dict[Any, Any], Any, Tensor, int]]:
    """Yield what a layer of a cache keeps of each row, whatever that is: its place (dict and key), and the rows' axis.

    Keys and values are attributes, convolution and recurrent states are in dicts. What has one axis or none
    (lengths, windows) is common to all rows.
    """
    for name, value in list(vars(layer).items()):
        places = value if isinstance(value, dict) else vars(layer)
        for key in list(value) if isinstance(value, dict) else [name]:
            if isinstance(places[key], Tensor) and places[key].ndim >= 2:
                yield places, key, places[key], 1 if key == "indexer_position_ids" else 0


@functools.cache  # compiled calls are guarded by the cache's type: a new one would be compiled again
def _in_blocks(base: Any, blocks: int) -> Any:
    """Return a class of caches whose row operations act on each of `blocks` stacked blocks of rows."""

    class Blocks(base):  # type: ignore[misc]  # the base is only known at run time
        def _everywhere(self, rows: Tensor) -> Tensor:
            held = next((state.shape[axis] for layer in self.layers for _, _, state, axis in states(layer)), 0)
            size = held // blocks
            return torch.cat([rows + block * size for block in range(blocks)])

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(self._everywhere(beam_idx))

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(self._everywhere(indices))

        def only_global(self) -> None:
            """Drop every block but the first, and be a plain cache again."""
            for layer in self.layers:
                for places, key, state, axis in states(layer):
                    size = state.shape[axis] // blocks
                    places[key] = state.narrow(axis, 0, size)
                    if isinstance(layer, StaticLayer):  # room for one branch alone, which the caller may fill up
                        places[key], layer.batch_size = places[key].clone(), size
            self.__class__ = base

    Blocks.__name__, Blocks.__qualname__ = base.__name__, base.__qualname__
    return Blocks


def joined(cache: Any, others: list[Any]) -> bool:
    """Append the rows of the other branches' caches to the global one, and empty those.

    Returns False, and changes nothing, where they don't hold the same kinds of states of the same tokens: drafts are
    about to be taken back, or a sliding window has let go of some states.
    """

    def held(found: Any) -> list[Any]:
        return [
            (
                type(layer),
                int(getattr(layer, "cumulative_length", 0)),
                [(key, s.shape) for _, key, s, _ in states(layer)],
            )
            for layer in found.layers
        ]

    if not all(other is not None and held(cache) == held(other) for other in others):
        return False
    for index, layer in enumerate(cache.layers):
        parts = zip(states(layer), *(list(states(other.layers[index])) for other in others), strict=True)
        for (places, key, state, axis), *more in list(parts):
            places[key] = torch.cat([state, *(found[2] for found in more)], dim=axis)
            if isinstance(layer, StaticLayer):  # as its own initialisation does, for CUDA graphs
                torch._dynamo.mark_static_address(places[key])
            for emptied, name, *_ in more:
                emptied[name] = None
    base: Any = type(cache)
    cache.__class__ = _in_blocks(base, 1 + len(others))
    return True


def stack(
    inputs: Mapping[str, Any], views: list[dict[str, Any]], rows: int, holes: list[Tensor | None]
) -> dict[str, Any]:
    """Stack a model call of R rows and what the other branches' calls have otherwise into N * R rows.

    Args:
        inputs: keyword arguments of the model for the global branch.
        views: for each other branch the arguments of R rows that its call has otherwise; keys that `inputs` lacks are
            ignored (after the first step most models get no picture).
        rows: R.
        holes: for each other branch the columns of the cache that it can't see, [R, columns] bool, or None.
    """
    own = {key for key in set().union(*views) & inputs.keys() if isinstance(inputs[key], Tensor)}
    stacked = only_rows({key: value for key, value in inputs.items() if key not in own}, 1 + len(views), rows)
    for key in own:
        value = inputs[key]
        stacked[key] = torch.cat([value, *(view[key].to(value.device, value.dtype) for view in views)])
    if stacked.get(MASK) is None and any(hole is not None for hole in holes):
        # generate() left it out, because no token is padding
        length = inputs[CACHE].get_seq_length() + inputs["input_ids"].shape[1]
        stacked[MASK] = inputs["input_ids"].new_ones(len(stacked["input_ids"]), length)
    masks: Any = stacked.get(MASK)
    for block, hole in enumerate(holes, start=1):
        if hole is not None:
            for mask in masks.values() if isinstance(masks, dict) else [masks]:  # [N * R, (heads, Q,) columns]
                part = mask[block * rows : (block + 1) * rows, ..., : hole.shape[1]]
                closed = torch.finfo(mask.dtype).min if mask.is_floating_point() and mask.ndim > 2 else 0
                part.masked_fill_(hole.to(mask.device).view(rows, *[1] * (mask.ndim - 2), -1), closed)
    return stacked


GROWN = {POSITIONS, TYPES, "token_type_ids"}
"""What generate() grows with the answer, of what is laid along the tokens; the mask it grows before."""


def grown(view: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return what a branch's call has otherwise, its positions and token types grown to rows of this length."""
    found = dict(view)
    for key in found.keys() & GROWN:
        last = found[key][..., -1:]
        more = torch.arange(1, length - found[key].shape[-1] + 1, device=last.device).to(last.dtype)
        new = last + more if key == POSITIONS else (0 if key == TYPES else last) + torch.zeros_like(last + more)
        found[key] = torch.cat([found[key], new], -1)
    return found


def along(value: Any, length: int) -> bool:
    """Tell whether an argument of rows of `length` tokens is laid along them: on its last axis."""
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == length


def until(arguments: Mapping[str, Any], stop: int, length: int) -> dict[str, Any]:
    """Return arguments of rows of `length` tokens for their first `stop`."""
    if stop == length:
        return dict(arguments)
    return {key: value[..., :stop] if along(value, length) else value for key, value in arguments.items()}


@contextmanager
def deltas_kept(model: Any) -> Iterator[None]:
    """Leave a model's modules the `rope_deltas` that they have: by these M-RoPE models go on in a user's next turn."""
    noted = [(module, module.rope_deltas) for module in model.modules() if "rope_deltas" in vars(module)]
    try:
        yield
    finally:
        for module, deltas in noted:
            module.rope_deltas = deltas


def only_rows(arguments: Mapping[str, Any], chosen: Tensor | int, rows: int) -> dict[str, Any]:
    """Return arguments of R rows for some of the rows, or for all of them so many times."""
    found = dict(arguments)
    for key, value in arguments.items():
        if type(value) is dict:  # masks of a model with several kinds of attention
            found[key] = only_rows(value, chosen, rows)
        elif isinstance(value, Tensor) and value.ndim >= 2:  # settings and index vectors are no rows
            # M-RoPE's position ids are [3 or 4, rows, length]; one row of positions serves all by broadcasting
            axis = 1 if key == POSITIONS and value.ndim == 3 else 0
            if value.shape[axis] == rows:
                if isinstance(chosen, int):
                    found[key] = torch.cat([value] * chosen, axis)
                else:
                    found[key] = value.index_select(axis, chosen.to(value.device))
    return found
