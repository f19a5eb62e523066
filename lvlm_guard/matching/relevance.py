"""From a text layer's attention to the pixels that are kept: AGLA's map and mask, on tensors alone.

    gradcam    attention and its gradient        -> a g x g map (24 x 24 for BLIP at 384 pixels)
    heat_map   enlarge by a cubic B-spline, blur -> a side x side map in [0, 1]
    keep_mask  the best-ranked share of it       -> the pixels that stay

Source: AGLA (arXiv:2406.12718), as its release computes it (Lackel/AGLA at efa1263; LAVIS' `compute_gradcam` and
`getAttMap`). Everything is batched and stays on its device: enlarging and blurring are linear and separable, so each is
one small matrix, taken from SciPy once a size. Where a map is constant, the release divides 0 by 0 and keeps the whole
picture by way of NaN; here such a map is 1 everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lvlm_guard.errors import ImageError, LogitsError

BLUR = 0.02  # standard deviation of the blur, as a share of the map's side (7.68 pixels of 384)
CAP = 1 - 1e-5  # upper bound of the keep ratio


def content_weights(attention_mask: Tensor) -> Tensor:
    """Return the weight of each text position in the map: 1 / (n - 2) between the specials, else 0.

    Of a mask [B, L] of 0 and 1, padding on the right, n ones a row: [B, L] float32 with rows summing to 1 (to 0 where a
    text has no content).
    """
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    real = attention_mask.sum(-1, keepdim=True)
    content = (position >= 1) & (position < real - 1)
    return content.float() / (real - 2).clamp(min=1)


def gradcam(attention: Tensor, gradient: Tensor, attention_mask: Tensor) -> Tensor:
    """Return relu(gradient) * attention, averaged over heads and content tokens, as a square map.

    Args:
        attention: cross-attention probabilities, [B, heads, L, 1 + g*g]; column 0, the image's class token, is dropped.
        gradient: of the matching logit with respect to them, same shape.
        attention_mask: [B, L] of 0 and 1, padding on the right.

    Returns [B, g, g] float32, row-major over the picture, >= 0.
    """
    cam = (gradient[..., 1:].float().clamp(min=0) * attention[..., 1:].float()).mean(1)  # [B, L, g*g]
    flat = torch.einsum("blp,bl->bp", cam, content_weights(attention_mask))
    side = math.isqrt(flat.shape[-1])
    return flat.view(-1, side, side)


def share_on_class(attention: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the share of the content tokens' attention that rests on the image's class column, [B] in [0, 1]."""
    return (attention[..., 0].float().mean(1) * content_weights(attention_mask)).sum(-1)


@lru_cache(maxsize=16)
def _operators(cells: int, side: int, device: torch.device) -> list[Tensor]:
    """Return what enlarges one axis by a cubic B-spline, zeros outside, [side, cells], as does scikit-image's
    `resize(..., order=3, mode="constant")` since 0.19; and what blurs it, edges mirrored, [side, side]."""
    how = {"order": 3, "mode": "grid-constant", "cval": 0.0, "grid_mode": True}
    enlarge = np.stack([ndimage.zoom(unit, side / cells, **how) for unit in np.eye(cells)], axis=1)
    blur = ndimage.gaussian_filter1d(np.eye(side), BLUR * side, axis=0, mode="reflect", truncate=4.0)
    # a caller's inference_mode would make tensors here that a later caller's autograd refuses
    with torch.inference_mode(False):
        return [torch.from_numpy(matrix).float().to(device) for matrix in (enlarge, blur)]


def heat_map(cam: Tensor, side: int) -> Tensor:
    """Enlarge square maps to pixels, blur them, and scale each to [0, 1].

    Args:
        cam: [B, g, g], g >= 2; NaN or infinity raise `LogitsError`.
        side: pixels of the matcher's square picture, 384 for BLIP.

    Returns:
        [B, side, side] float32 on the device of `cam`; 1 everywhere where a map is constant.
    """
    cam = cam.float()
    if not torch.isfinite(cam).all():
        raise LogitsError(
            "The matcher's relevance map holds NaN or infinity, so no pixel can be ranked. Its weights overflow in the "
            "number format they were loaded in: load the matcher in float32, its default."
        )
    enlarge, blur = _operators(cam.shape[-1], side, cam.device)
    low = cam - cam.amin((-2, -1), keepdim=True)
    peak = low.amax((-2, -1), keepdim=True)
    unit = low / torch.where(peak > 0, peak, 1)
    fine = (enlarge @ unit @ enlarge.T).clamp_(0, 1)  # the spline overshoots; the input spans [0, 1]
    soft = blur @ fine @ blur.T
    soft = soft - soft.amin((-2, -1), keepdim=True)
    top = soft.amax((-2, -1), keepdim=True)
    flat = (peak == 0) | (top == 0)
    return torch.where(flat, 1.0, soft / torch.where(flat, 1, top))


def keep_index(score: float, pixels: int) -> int:
    """Return the rank, from 0, of the last pixel kept: int(pixels * min(1 - score / 2, 1 - 1e-5)).

    Computed in float32 below the cap, as the release does. A score of 1 keeps half, 0 or less all but one of 147456.
    Raises `LogitsError` where the score is NaN.
    """
    if math.isnan(score):
        raise LogitsError(
            "The match score is NaN, so no share of the picture can be kept: load the matcher in float32."
        )
    ratio = np.float32(1) - np.float32(min(max(score, -2), 2)) / np.float32(2)
    index = int(pixels * CAP) if ratio >= CAP else int(np.float32(pixels) * ratio)
    return min(max(index, 0), pixels - 1)


def keep_mask(relevance: Tensor, score: float) -> Tensor:
    """Mark the pixels at least as relevant as the one ranked `keep_index`, [h, w] bool, more only where values tie.

    Of a map [h, w] higher values matter more; a higher match score keeps less, 1 about half, 0 or less everything.
    Raises `ImageError` where the map is empty or holds NaN, `LogitsError` where the score is NaN.
    """
    return _best(relevance, keep_index(score, max(relevance.numel(), 1)))


def keep_share(relevance: Tensor, share: float) -> Tensor:
    """Mark the most relevant share of the pixels, above 0 to 1, but one at least; as `keep_mask`."""
    return _best(relevance, max(round(relevance.numel() * share), 1) - 1)


def _best(relevance: Tensor, last: int) -> Tensor:
    """Mark the pixels at least as relevant as the one of the last rank kept, from 0."""
    pixels = relevance.numel()
    if pixels == 0 or torch.isnan(relevance).any():
        raise ImageError(
            f"The relevance map of shape {tuple(relevance.shape)} is empty or holds NaN: no pixel has a rank."
        )
    # the value ranked `index` from the top is the (pixels - index)-th smallest; no full sort is needed
    return relevance >= relevance.flatten().kthvalue(pixels - last).values


def kept_tokens(relevance: Tensor, share: float) -> Tensor:
    """Mark the most relevant share of a picture's tokens, [n] bool: at least one, the earlier of equals.

    Relevance [n] is infinite for tokens that show nothing of the picture, which stay and are not counted.
    """
    kept = relevance.isinf()
    counted = (~kept).nonzero().flatten()
    best = relevance[counted].argsort(descending=True, stable=True)[: max(round(len(counted) * share), 1)]
    kept[counted[best]] = True
    return kept
