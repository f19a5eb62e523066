"""From captions to token ids with room for the prompts, and no word lost unsaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["raise", "truncate"]


@dataclass(frozen=True)
class CaptionInputs:
    """A batch of captions as a CLIP's text encoder takes them: BOS, slots, words, EOS, padding.

    Args:
        input_ids: [n, tokens].
        attention_mask: [n, tokens], 0 on padding.
        words: [n, tokens] bool, true on pieces of the caption's own words.
    """

    input_ids: Tensor
    attention_mask: Tensor
    words: Tensor

    def to(self, device: torch.device | str) -> CaptionInputs:
        """Return the same on a device."""
        return CaptionInputs(self.input_ids.to(device), self.attention_mask.to(device), self.words.to(device))

    def __getitem__(self, rows: Tensor | slice | list[int]) -> CaptionInputs:
        """Return some of the captions."""
        return CaptionInputs(self.input_ids[rows], self.attention_mask[rows], self.words[rows])


def budget(length: int, slots: int) -> int:
    """Return how many word pieces a caption may have: the encoder's length without BOS, EOS and the slots."""
    return length - 2 - slots


def caption_inputs(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    placeholder_ids: Sequence[int] = (),
    length: int = 77,
    too_long: TooLong = "raise",
) -> CaptionInputs:
    """Return captions with the placeholder tokens after BOS, padded to the longest.

    Args:
        tokenizer: of the CLIP.
        texts: captions; at least one.
        placeholder_ids: of the prompts (`DualPromptConfig.placeholder_ids`); none for a CLIP without text prompts.
        length: most tokens of the text encoder, 77 in CLIP.
        too_long: "raise", or "truncate" to cut the caption's end; EOS stays, which the feature is read from.

    Raises:
        TextError: a caption is empty or too long.
        KnobError: there is no caption, or another `too_long`.
        UnsupportedModelError: the tokenizer has no begin or end token.
    """
    if too_long not in get_args(TooLong):
        raise KnobError(f"too_long is {too_long!r}: give 'raise' or 'truncate'.")
    if isinstance(texts, str) or not texts:
        raise KnobError("Give a list of captions, also if it is one, with at least one in it.")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None or end is None:
        raise UnsupportedModelError(
            "This tokenizer has no begin or no end token, between which CLIP reads a caption: load the one that lies "
            "with the CLIP."
        )
    most = budget(length, len(placeholder_ids))
    rows = [
        _pieces(ids, text, most, length, len(placeholder_ids), too_long)
        for ids, text in zip(tokenizer(list(texts), add_special_tokens=False)["input_ids"], texts, strict=True)
    ]
    head = [begin, *placeholder_ids]
    width = max(map(len, rows)) + len(head) + 1
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    words = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        sequence = torch.tensor([*head, *row, end])
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
        words[i, len(head) : len(head) + len(row)] = True
    return CaptionInputs(ids, mask, words)


def _pieces(ids: list[int], text: str, most: int, length: int, slots: int, too_long: TooLong) -> list[int]:
    if not ids:
        raise TextError(f"The caption {text!r} is empty. Say what the picture shows.")
    if len(ids) > most and too_long == "raise":
        raise TextError(
            f"A caption has {len(ids)} word pieces, but {most} is the most: this CLIP reads {length} tokens, of which "
            f"BOS, EOS and {slots} prompts take {length - most}. Shorten it, or give too_long='truncate'. It begins: "
            f"{text[:60]!r}."
        )
    return ids[:most]
