"""Where a ranker starts: at what its CLIP already knows of which image token shows what a text names.

Ours, not the paper's: from random weights the fusion must first find out which direction of an image token belongs to
which word, for every object, from pair losses alone. CLIP's own projections say it, for patch tokens too, if less well
than for the class token. So the ranker's entries and the first queries and keys of its cross-attention are made of
them; all of it is trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.ranker.model import ClipRanker
from lvlm_guard.errors import UnsupportedModelError

SHARP = 2.0
"""Factor of queries and of keys, so that attention begins to choose; ours."""


@torch.no_grad()
def align(model: ClipRanker) -> None:
    """Make queries of image tokens and keys of text tokens alike where CLIP's own features are.

    Raises:
        UnsupportedModelError: the CLIP has no projections of the two sides into one space.
    """
    clip, fusion = model.clip, model.ranker.fusion
    image, text = getattr(clip, "visual_projection", None), getattr(clip, "text_projection", None)
    norm = getattr(clip.vision_model, "post_layernorm", None)
    if image is None or text is None or norm is None or image.weight.shape[1] != model.trunk.image_width:
        raise UnsupportedModelError(
            "A ranker can start aligned on a ViT CLIP alone, whose projections fit its tokens: give --start random."
        )
    width = model.settings.width
    joint = image.weight.shape[0]
    common = _orthogonal(width, joint)
    seen = common @ (image.weight * norm.weight)
    said = common @ text.weight
    with_image, with_text = (_entered(entry, to) for entry, to in ((fusion.in_image, seen), (fusion.in_text, said)))
    for layer in fusion.layers:
        turned = SHARP * _orthogonal(width, width)
        attention: Any = layer.cross_attention
        attention.q_proj.weight.copy_(turned @ with_image)
        attention.q_proj.bias.zero_()
        attention.k_proj.weight.copy_(turned @ with_text)


def _entered(entry: nn.Module, projection: Tensor) -> Tensor:
    """Put a projection into an entry; return what is left to do behind it: nothing, or all where it is none."""
    if isinstance(entry, nn.Linear):
        entry.weight.copy_(projection)
        entry.bias.zero_()
        return torch.eye(len(projection))
    return projection


def _orthogonal(rows: int, columns: int) -> Tensor:
    made: Tensor = nn.init.orthogonal_(torch.empty(rows, columns))
    return made
