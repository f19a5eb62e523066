"""Features in parts that fit in memory, from one thread at a time, on the CPU; and what words weigh for a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvlm_guard.adapters.retrieval.captions import CaptionInputs
from lvlm_guard.adapters.retrieval.model import RetrievalModel
from lvlm_guard.adapters.retrieval.word_weights import raw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
