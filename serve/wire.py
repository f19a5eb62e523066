"""Masks and scores as text that a request can carry, strict about what is read back.

    mask    base64(zlib(packbits(keep)))        [side, side] bool, row by row; 384 x 384 in BLIP-large
    scores  base64(zlib(JSON {claim: p}))       p in 0 to 1, exact for float32

A mask is square and the side follows from its size, so that a matcher of another size (96 in the embedded
world) gives the very mask that the transformers engine paints with. Nothing inflates past a bound, and each
text reads back as one value alone or not at all: no cut ends, nothing behind the end, no other alphabet.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.serve.errors import WireError

SIDE = 384
"""Side of BLIP's map, at which AGLA masks."""

MOST_SIDE = 768
"""Largest side on the wire."""

MOST_SCORES = 4096
"""Most claims in one text; COCO's vocabulary has 80."""

_SCORES_BYTES = 1 << 20


def pack_mask(keep: NDArray[np.bool_]) -> str:
    """Return a mask as text: about 1.5 kB where it is smooth, 24.6 kB at most for 384 x 384.

    Args:
        keep: [side, side] bool, True where a pixel stays; the side a multiple of 4, up to `MOST_SIDE`.

    Raises:
        WireError: another shape or type.
    """
    mask = np.asarray(keep)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not _is_side(mask.shape[0]):
        raise WireError(
            f"A mask of {mask.dtype} {list(mask.shape)} can't be sent: give bool [side, side] with a side of 4, 8, ... "
            f"{MOST_SIDE}. A matcher whose map is of another shape can't be served."
        )
    return _packed(np.packbits(mask).tobytes())


def unpack_mask(text: str) -> NDArray[np.bool_]:
    """Return the mask of a text that `pack_mask` made, [side, side] bool.

    Raises:
        WireError: the text is anything else; hostile text costs no more than a mask.
    """
    packed = _unpacked(text, "mask", MOST_SIDE * MOST_SIDE // 8)
    side = math.isqrt(8 * len(packed))
    if side * side != 8 * len(packed) or not _is_side(side):
        raise WireError(
            f"The mask has {len(packed)} bytes, which are no square of 4, 8, ... {MOST_SIDE} pixels a side "
            f"({SIDE} x {SIDE} has {SIDE * SIDE // 8}). Send what `pack_mask` made."
        )
    return np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(side, side).astype(np.bool_)


def pack_scores(names: Sequence[str], p: Sequence[float]) -> str:
    """Return claims and how far the picture supports each as text.

    Args:
        names: the claims, each once.
        p: for each its probability, 0 to 1.

    Raises:
        WireError: a probability is out of range, a claim is empty or comes twice, there are too many, or the
            numbers of claims and probabilities differ.
    """
    if len(names) != len(p):
        raise WireError(f"There are {len(names)} claims and {len(p)} probabilities: give one for each claim.")
    scores = dict(zip(names, map(float, p), strict=True))
    if len(scores) != len(names):
        raise WireError("A claim comes twice: give each claim once, with one probability.")
    _check_scores(scores)
    raw = json.dumps(scores, separators=(",", ":")).encode()
    if len(raw) > _SCORES_BYTES:
        raise WireError(f"The claims make {len(raw):,} bytes; the limit is {_SCORES_BYTES:,}. Send fewer.")
    return _packed(raw)


def unpack_scores(text: str) -> dict[str, float]:
    """Return the scores of a text that `pack_scores` made, in its order.

    Raises:
        WireError: the text is anything else.
    """
    raw = _unpacked(text, "scores", _SCORES_BYTES)
    try:
        scores = json.loads(raw, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise WireError(f"The scores are no JSON object ({error}). Send what `pack_scores` made.") from error
    if not isinstance(scores, dict):
        raise WireError(f"The scores are a JSON {type(scores).__name__}, no object. Send what `pack_scores` made.")
    _check_scores(scores)
    return {claim: float(value) for claim, value in scores.items()}


def _is_side(side: int) -> bool:
    return 4 <= side <= MOST_SIDE and side % 4 == 0


def _check_scores(scores: dict[Any, Any]) -> None:
    if len(scores) > MOST_SCORES:
        raise WireError(f"{len(scores):,} claims are too many for one request: give {MOST_SCORES:,} at most.")
    for claim, value in scores.items():
        if not isinstance(claim, str) or not claim.strip():
            raise WireError(f"{claim!r} is no claim: give a sentence.")
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise WireError(f"The score of {claim!r} is {value!r}: give a number from 0 to 1.")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("The scores name a claim twice. Send what `pack_scores` made.")
    return found


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def _unpacked(text: str, what: str, most: int) -> bytes:
    """Return what `_packed` was given, `most` bytes or fewer."""
    if not isinstance(text, str):
        raise WireError(f"The {what} is a {type(text).__name__}, no text. Send what the matcher service gave.")
    # zlib adds at most 5 bytes to 16 kB that it can't shrink; base64 a third
    if len(text) > (most + most // 1024 + 64) * 4 // 3:
        raise WireError(f"The {what} is {len(text):,} characters long, longer than any. Send what the service gave.")
    unzip = zlib.decompressobj()
    try:
        raw = unzip.decompress(binascii.a2b_base64(text, strict_mode=True), most + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise WireError(
            f"The {what} can't be read ({error}): damaged on its way, or made by something else."
        ) from error
    if len(raw) > most:
        raise WireError(f"The {what} has more than {most:,} bytes when unpacked. Send what the service gave.")
    if not unzip.eof or unzip.unused_data:
        raise WireError(f"The {what} is cut short, or goes on behind its end: damaged, or made by something else.")
    return raw
