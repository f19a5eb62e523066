"""From captions to token ids with room for the prompts, no word lost unsaid, and from these and pixels to features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from lvlm_guard.adapters.retrieval.model import RetrievalModel, raw
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
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for pieces, text in zip(rows, texts, strict=True):
        if not pieces:
            raise TextError(f"The caption {text!r} is empty. Say what the picture shows.")
        if len(pieces) > most and too_long == "raise":
            raise TextError(
                f"A caption has {len(pieces)} word pieces, but {most} is the most: this CLIP reads {length} tokens, of "
                f"which BOS, EOS and {len(placeholder_ids)} prompts take {length - most}. Shorten it, or give "
                f"too_long='truncate'. It begins: {text[:60]!r}."
            )
    head = [begin, *placeholder_ids]
    width = max(min(len(pieces), most) for pieces in rows) + len(head) + 1
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    words = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        sequence = torch.tensor([*head, *row[:most], end])
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
        words[i, len(head) : len(sequence) - 1] = True
    return CaptionInputs(ids, mask, words)


AT_ONCE = 64
"""Pictures or captions in one pass of an encoder."""


class Encoder:
    """Asks a `RetrievalModel` for features, without gradients; as it is, or frozen: as the untrained CLIP.

    Args:
        model: on any device; features come back on the CPU, [n, d] float32 normalised.
    """

    def __init__(self, model: RetrievalModel) -> None:
        self.model = model
        self.lock = RLock()  # being frozen is a state of the model

    def images(self, pixels: Tensor, *, frozen: bool = False) -> Tensor:
        """Return features of pixels [n, 3, side, side]."""
        return self._asked(self.model.encode_image, frozen, pixels)

    def texts(self, inputs: CaptionInputs, factors: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return features of captions; `factors` [n, tokens] weigh their words. Frozen ones have no placeholders."""
        more = () if factors is None else (factors,)
        return self._asked(self.model.encode_text, frozen, inputs.input_ids, inputs.attention_mask, *more)

    def _asked(self, encode: Callable[..., Tensor], frozen: bool, *tensors: Tensor) -> Tensor:
        with self.lock:
            if frozen:
                with self.model.frozen():
                    return self._asked(encode, False, *tensors)
            with torch.no_grad():
                parts = zip(*(tensor.split(AT_ONCE) for tensor in tensors), strict=True)
                return torch.cat([encode(*(part.to(self.model.device) for part in each)).cpu() for each in parts])


class WordWeigher:
    """Says how much each piece of a caption is about a picture; see `word_weights`. Each piece is encoded once.

    Args:
        encoder: of the model.
        tokenizer: of the CLIP.
    """

    def __init__(self, encoder: Encoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder = encoder
        self._ends = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._alone: dict[int, Tensor] = {}
        self._blank: Tensor | None = None

    def raw(self, frozen_image: Tensor, inputs: CaptionInputs) -> Tensor:
        """Return w of each token for the picture in the same row, [m, tokens]; of no meaning where no word stands.

        Args:
            frozen_image: [m, d], features of the frozen CLIP.
            inputs: m captions.
        """
        ids, piece = inputs.input_ids.unique(return_inverse=True)
        with self._encoder.lock:
            self._learn(ids.tolist())
            blank = self._blank_picture()
            alone = torch.stack([self._alone[int(token)] for token in ids])[piece]
        return raw(alone @ blank, torch.einsum("mtd,md->mt", alone, frozen_image.float()))

    def _blank_picture(self) -> Tensor:
        if self._blank is None:
            side = self._encoder.model.base.config.vision_config.image_size
            # 0 after normalisation: a picture of the mean colour
            self._blank = self._encoder.images(torch.zeros(1, 3, side, side), frozen=True)[0]
        return self._blank

    def _learn(self, pieces: Sequence[int]) -> None:
        new = [piece for piece in pieces if piece not in self._alone]
        if new:
            ids = torch.tensor([[self._ends[0], piece, self._ends[1]] for piece in new])
            inputs = CaptionInputs(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
            self._alone.update(zip(new, self._encoder.texts(inputs, frozen=True), strict=True))
