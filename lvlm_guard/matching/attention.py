"""The model's own attention as a map: where the prompt's last token looks.

Measured on the embedded world, it ranks questions worse than no guard (AUROC -.038 [-.044, -.031]): a model that is
about to say what is not there looks where it thinks to see it. It is here as the row of the table that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.engine.attention import Rows, attending
from lvlm_guard.engine.steering import Pass
from lvlm_guard.errors import UnsupportedCallError
from lvlm_guard.matching.match import Match, Matcher

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call


class Attention(Matcher):
    """Stands for the model's own attention where a method takes a matcher; it knows nothing of pictures and texts."""

    version = "attention"

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Raise `UnsupportedCallError`: it is no matcher of pictures with texts."""
        raise UnsupportedCallError(
            "matcher='attention' tells where the model looks during a call, not how a text matches a picture. `focus` "
            "takes it; give another method a matcher, such as 'blip-itm'."
        )


def attended(call: Call) -> list[Tensor]:
    """Return how much the last token of each prompt attends to each of its image tokens, [n] a request.

    The mean over the heads of the second half of the layers, from one more reading of the prompt. Raises
    `UnsupportedModelError` where the layers have no softmax attention that can be read, `UnsupportedCallError` where
    the prompts hold no image tokens, and as `Call.opening`.
    """
    made, decoder = call.opening, call.decoder
    ids = made["input_ids"].to(call.device)
    layers = range(len(decoder) // 2, len(decoder))
    looked = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)

    def look(rows: Rows) -> None:
        looked.add_(rows.weights()[:, :, -1].mean(1).to(looked))

    passed = Pass(call, ids, 0, ids.shape[1], list(range(len(ids))), made["attention_mask"].to(ids.device))
    with attending(passed, decoder, layers, look):
        call.run(made)
    pictures = ids == call.family.image_token_id(call.model.config)
    return [row[shown] / len(layers) for row, shown in zip(looked, pictures, strict=True)]
