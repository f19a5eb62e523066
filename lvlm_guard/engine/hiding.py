"""A branch inside the model's own cache: what it hides is taken out, what stands behind is read again.

    global   K, V of [system ... picture ... question ... answer so far]
    hiding   K, V of [system ... what it keeps of the picture] from the global cache, then [question ... answer so far]
             read again over them, each token at the position that it has in the global rows

Keys are rotated before they are cached, so taking columns out equals masking them. The branch therefore decodes
*shorter rows* of the same tokens, and all that follows a lagging branch (beams, drafts, one chunk for what it skipped)
is that of `reading`. What it shares, up to the end of the picture, is the global branch's by definition: the branch is
defined as what reads the text again over a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from lvlm_guard.engine import rows as blocks
from lvlm_guard.errors import UnsupportedCallError


class Hidden:
    """Which columns of whole rows [R, T] a branch reads, and which of those from the global cache.

    Args:
        hides: prompt positions that are taken out, [R, prompt] bool; or [B, prompt] of requests, each of R / B rows.
        pictures: prompt positions that hold a picture's tokens, likewise. What stands before a row's last one is never
            read again.
        seen: prompt positions that are no padding, [R, prompt] bool.

    Raises `UnsupportedCallError` where a prompt ends with its picture, so that there is nothing to read again.
    """

    def __init__(self, hides: Tensor, pictures: Tensor, seen: Tensor) -> None:
        hides, pictures = (
            each.to(seen.device).repeat_interleave(len(seen) // len(each), 0) for each in (hides, pictures)
        )
        self.prompt = hides.shape[1]
        column = torch.arange(self.prompt, device=hides.device)
        ends = (pictures * (column + 1)).amax(-1)
        if bool((ends == self.prompt).any()):
            raise UnsupportedCallError(
                "A prompt ends with its picture, so there is no question behind it to read again over a part of the "
                "picture. Ask behind the picture, or use a method that reads a second picture, such as 'agla'."
            )
        shown = ends > 0
        ends = torch.where(shown, ends, ends[shown].amin())  # a row without a picture is not guarded: any end will do
        self.hides = hides & seen
        self.start = int(ends.min())  # first column that any row reads itself
        self._own = (column >= ends[:, None])[:, self.start :]
        kept = seen & ~hides & (column < ends[:, None])
        self.shared = int(kept.sum(-1).max())
        self.first = self.shared + self.prompt - self.start  # tokens of its rows' prompt
        # the kept columns of each row, to the right; what is left over on the left is masked
        self._columns = kept.to(torch.int8).sort(dim=-1, stable=True).indices[:, self.prompt - self.shared :]
        self._valid = torch.cat([kept.gather(1, self._columns), self._own & (seen & ~hides)[:, self.start :]], -1)

    def read(self, ids: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the branch's own rows, [R, T - hidden], and arguments, of generate()'s for whole rows, [R, T]."""
        length = ids.shape[1]
        rest = torch.arange(self.start, length, device=ids.device).expand(len(ids), -1)
        index = torch.cat([self._columns.to(ids.device), rest], -1)
        answered = length - self.prompt
        valid = torch.nn.functional.pad(self._valid.to(ids.device), (0, answered), value=True)
        # a picture's placeholder in a column that is masked would ask the model for that picture
        filled = torch.where(valid | (index < self.start), ids.gather(1, index), ids[:, self.prompt - 1 : self.prompt])
        found = {key: _gathered(value, index, length) for key, value in arguments.items()}
        mask = arguments.get(blocks.MASK)
        mask = torch.ones_like(ids) if mask is None else mask
        found[blocks.MASK] = mask.gather(1, index) * valid.to(mask.dtype)
        return filled, found

    def seed(self, cache: Any, empty: Cache, chosen: Tensor | None = None) -> None:
        """Fill an empty cache with the shared columns, [R, heads, shared, size], of generate()'s.

        That holds the whole prompt. `chosen` are the rows of it which the rows of this branch are; None for all.
        """

        def shared(held: Tensor) -> Tensor:
            held = held if chosen is None else held[chosen.to(held.device)]
            at = self._columns.to(held.device)[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[-1])
            return held.gather(2, at)

        for index, layer in enumerate(cache.layers):
            empty.update(shared(layer.keys), shared(layer.values), index)

    def whole(self, cache: Any, own: Any, empty: Cache) -> Cache | None:
        """Return an empty cache filled with all the columns of the global rows, those to be masked among them.

        None where the branch's own has not read the same tokens as generate()'s.
        """
        if own.get_seq_length() - self.shared + self.start != cache.get_seq_length():
            return None

        def filled(held: Tensor, read: Tensor) -> Tensor:
            answered = held.shape[2] - self.prompt
            owns = torch.nn.functional.pad(self._own.to(held.device), (0, answered), value=True)
            tail = torch.where(owns[:, None, :, None], read[:, :, self.shared :], held[:, :, self.start :])
            return torch.cat([held[:, :, : self.start], tail], 2)

        for index, (layer, mine) in enumerate(zip(cache.layers, own.layers, strict=True)):
            empty.update(filled(layer.keys, mine.keys), filled(layer.values, mine.values), index)
        return empty


def _gathered(value: Any, index: Tensor, length: int) -> Any:
    """Bring what is laid along the tokens, on its last axis, to the columns of the branch's rows."""
    if not blocks.along(value, length) or value.shape[-2] not in (1, len(index)):
        return value
    rows = value.expand(*value.shape[:-2], len(index), length)
    return rows.gather(-1, index.to(value.device).expand(*rows.shape[:-1], -1))


def shareable(cache: Any, longest: int) -> str | None:
    """Return why a branch can't share generate()'s cache, rows of up to `longest` tokens; None where it can."""
    if not isinstance(cache, Cache):
        return "there is no cache (use_cache=False)"
    for layer in cache.layers:
        if type(layer) not in blocks.PLAIN:
            return f"a {type(layer).__name__} keeps more than the keys and values of single tokens"
        if not getattr(layer, "is_sliding", False):
            continue
        window = getattr(layer, "sliding_window", None)
        lost = window is not None and longest >= window
        if isinstance(layer, StaticLayer):  # it has room for its window, or for all but the last token
            window, lost = layer.max_cache_len, longest - 1 > layer.max_cache_len
        if lost:
            return f"its sliding window of {window} tokens lets go of some that the branch needs"
    return None
