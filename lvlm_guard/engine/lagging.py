"""A branch that runs only at steps where it matters, and then catches up all it skipped in one chunk.

Its KV cache is a pure function of (request, tokens). So nothing of generate()'s bookkeeping has to be
followed: at each run the tokens that the cache holds are compared with the tokens of the rows as they
are now. Rows that beam search moved are found by their tokens, and draft tokens that assisted decoding
rejected no longer match and are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class Lagging:
    """The tokens and the KV cache of one branch; both lag behind the global branch."""

    def __init__(self, crops: bool) -> None:
        self.crops = crops  # whether tokens can be taken back from the cache; where not, it is dropped and read anew
        self.cache: Any = None
        self._ids: Tensor | None = None  # [R, length of the cache]
        self._whole = 0  # tokens that can't be taken back: a sliding window has let go of those before them

    def begin(self, cache: Any, like: Any) -> None:
        """Take an empty cache, which records as that of the global branch does."""
        self.cache = cache
        self._slides = any(getattr(layer, "is_sliding", False) for layer in cache.layers)
        if records(like):
            cache.activate_past_recording()
        self._records = records(cache)

    def align(self, ids: Tensor, needed: int, per_request: int) -> int:
        """Make the cache hold a prefix of each row, and return that prefix's length.

        Args:
            ids: tokens of the rows now, prompt included, [R, T]. The prefix is of 0 to T - needed tokens.
            needed: for how many positions at the end logits are wanted; they are never cached.
            per_request: rows of each request (beams); a row takes its cache from a row of its request.
        """
        old = self._ids
        if old is None or len(old) != len(ids):
            return self.drop()
        shared = length = min(old.shape[1], ids.shape[1])
        if not torch.equal(old[:, :length], ids[:, :length]):
            source, shared = _sources(old[:, :length], ids[:, :length], per_request)
            self.cache.reorder_cache(source)
        shared = min(shared, ids.shape[1] - needed)
        if shared <= 0 or shared < min(old.shape[1], self._whole):
            return self.drop()
        if shared < old.shape[1] or self._records:  # one that records lets go of its past where it is cropped
            if not self.crops:
                return self.drop()
            try:
                self.cache.crop(shared - old.shape[1])
            except RuntimeError:  # past a sliding window, after it has cropped the layers before
                return self.drop()
        return shared

    def drop(self) -> int:
        """Let go of the cache; returns how many tokens are cached then."""
        self.cache, self._ids = None, None
        return 0

    def take_back(self, tokens: int) -> None:
        """Crop the cache; raises RuntimeError where it can't be."""
        if self._ids is not None:
            self.cache.crop(-tokens)
            self._ids = self._ids[:, :-tokens]

    def ran(self, ids: Tensor, done: int) -> None:
        """Note that the cache, where there is one, holds these tokens now, [R, T], of which `done` were there."""
        if self.cache is None:
            return
        self._ids = ids.clone()
        self._whole = 0 if not self._slides else done if self._records else ids.shape[1]


def records(cache: Cache | None) -> bool:
    """Tell whether a cache with a sliding window keeps what is about to leave it until it is cropped, for drafts."""
    return cache is not None and any(getattr(layer, "record_past", False) for layer in cache.layers)


def _sources(old: Tensor, new: Tensor, per_request: int) -> tuple[Tensor, int]:
    """For each new row, the old row of its request with the longest common prefix, and the shortest of those."""
    requests = len(new) // per_request
    a = new.view(requests, per_request, 1, -1)
    b = old.view(requests, 1, per_request, -1)
    common = (a == b).long().cumprod(-1).sum(-1)  # [requests, new row, old row]
    best = common.max(-1)
    first = torch.arange(requests, device=new.device)[:, None] * per_request
    return (best.indices + first).flatten(), int(best.values.min())
