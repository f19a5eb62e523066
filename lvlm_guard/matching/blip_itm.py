"""`blip-itm`: BLIP's image-text matching head with GradCAM, the matcher of AGLA.

Source: AGLA (arXiv:2406.12718) with LAVIS' BLIP-ITM (arXiv:2201.12086), constants as in the release
(Lackel/AGLA at efa1263), on transformers' `BlipForImageTextRetrieval`. One pass over a picture and a text:

    states  the vision tower, once a picture, no gradient
    ITM     text with [ENC] in front, cross-attention to the states; the raw logit of class 1
    map     its gradient with respect to one layer's cross-attention, GradCAM over the content tokens
    ITC     text with [CLS] in front, no cross-attention; cosine with the picture's projected state

The attention enters its dropout as a fresh leaf and all weights are frozen, so the graph holds nothing
but the text layers above it. The map equals that of a full backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from os import PathLike
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_guard.errors import KnobError, LogitsError
from lvlm_guard.images import squash
from lvlm_guard.matching.blip_reading import (
    PIECES,
    MatchingText,
    first_token,
    gradcam_layer,
    read_blip,
    tokenise,
    version_of,
)
from lvlm_guard.matching.match import EDGE, Match, Matcher, Remembering, device_of
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import gradcam, heat_map, share_on_class

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval, PreTrainedModel, PreTrainedTokenizerBase

TOWER_TOKENS = 16 * 577
"""Image tokens in one pass of the tower or of the text layers; 16 pictures of BLIP-large."""

STATE_BYTES, SCORES = 96 << 20, 1 << 16
"""What is remembered: image states (40 pictures of BLIP-large), claim scores."""

CLAIMS = 128
"""Claims about one picture in one pass."""

SHARE = 4
"""Claims about one picture from which on it gets a pass of its own, which computes its keys and values once."""


class BlipITM(Remembering):
    """A matcher on a `BlipForImageTextRetrieval`.

    Args:
        model: the model; it is put in eval mode and its weights are frozen.
        tokenizer: its tokenizer. A token "[ENC]" stands in front for the ITM pass; a tokenizer without one
            and smaller than the model's vocabulary has it as the last row (30523 in BLIP).
        mean, std: per channel, of pixels in [0, 1].
        layer: text layer whose cross-attention makes the map, from 0. None: the config's
            `lvlm_guard["gradcam_layer"]`, else the middle one (6 of 12, as AGLA).
        name: what `version` calls the weights, beside a digest of the heads, layer and dtype.

    Raises:
        KnobError: the layer is the last one, or none of the model's.
        UnsupportedModelError: the text layers have no cross-attention, or there is one layer alone.
    """

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layer: int | None = None,
        name: str = "blip-itm",
    ) -> None:
        config: Any = model.config
        self.layer = gradcam_layer(config, layer)
        super().__init__(model.eval().requires_grad_(False), version_of(name, model, self.layer))
        self.tokenizer = tokenizer
        self.side: int = config.vision_config.image_size
        self.first = first_token(tokenizer, config.text_config.vocab_size)
        self.pieces = min(PIECES, config.text_config.max_position_embeddings)
        self._tokens = 1 + (self.side // config.vision_config.patch_size) ** 2
        self.at_once = max(1, TOWER_TOKENS // self._tokens)
        self._scale = (mean, std)
        slope, offset = (getattr(config, "lvlm_guard", None) or {}).get("platt", (1.0, 0.0))
        self.platt = (float(slope), float(offset))
        self._seen: Recent[bytes, Tensor] = Recent(STATE_BYTES)
        self._scores: Recent[tuple[bytes, MatchingText], float] = Recent(SCORES)
        self._texts: Recent[MatchingText, Tensor] = Recent(1024)
        self._tokenised = lru_cache(maxsize=4096)(partial(tokenise, tokenizer=tokenizer, pieces=self.pieces))
        self._here = local()  # threads share the model's one hook, each with an attention of its own
        attention: nn.Module = self.model.text_encoder.encoder.layer[self.layer].crossattention.self.dropout
        attention.register_forward_pre_hook(self._swap_attention)

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        layer: int | None = None,
    ) -> BlipITM:
        """Load a matcher from a folder made by `save_pretrained`, or a hub id.

        Args:
            source: "Salesforce/blip-itm-large-coco", for example.
            device: where it runs; None is the CPU.
            dtype: torch.float32 (None; AGLA's), or torch.bfloat16: half the memory, maps about the same. In float16 the
                gradient would underflow, which raises `KnobError`.
            layer: see the class.

        Raises `WeightsError` or `UnsupportedModelError` where there is no BLIP with an image-text matching head.
        """
        dtype = dtype or torch.float32
        if dtype not in (torch.float32, torch.bfloat16, torch.float64):
            raise KnobError(f"The matcher's dtype is {dtype}: its gradients would underflow. Give float32 or bfloat16.")
        with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
            model, tokenizer, mean, std, name = read_blip(source, dtype)
            placed: Any = model.to(torch.device(device or "cpu"))  # type: ignore[arg-type]  # torch's stub of a wrapped to()
            return cls(placed, tokenizer, mean=mean, std=std, layer=layer, name=name)

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load the default weights for a model: those its config names, else Salesforce/blip-itm-large-coco."""
        from lvlm_guard.matching.loading import default_source, shared

        return shared("blip-itm", default_source(model), device_of(model))

    def expect(self, pictures: int) -> None:
        """Make room for the states of so many pictures; 40 of BLIP-large are remembered without.

        They are no hundredth of what the call's own caches hold of the same pictures.
        """
        width = self.model.config.vision_config.hidden_size * self.model.dtype.itemsize
        self._seen.capacity = max(STATE_BYTES, pictures * self._tokens * width)

    def forget(self) -> None:
        """Drop the matches, the encoded pictures and the scores that are remembered."""
        super().forget()
        self._scores.clear()

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n] float32 in (0, 1).

        It is the ITM probability p, calibrated where the config's `lvlm_guard["platt"]` holds (a, b):
        sigmoid(a * logit(p) + b). Each (picture, claim) is computed once, all new claims in batches. Raises `TextError`
        where a claim is empty.
        """
        keys = {id(image): digest(image) for image in {id(image): image for image in images}.values()}
        pairs = [(keys[id(image)], self._asked(claim)) for image, claim in zip(images, claims, strict=True)]
        pictures = dict(zip(pairs, images, strict=True))

        def made(missing: list[tuple[bytes, MatchingText]]) -> list[float]:
            scores: dict[tuple[bytes, MatchingText], float] = {}
            for chunk in self._claim_chunks(missing):
                states = self._encode([key for key, _ in chunk], [pictures[pair] for pair in chunk])
                scores |= dict(zip(chunk, self._probabilities(states, [text for _, text in chunk]), strict=True))
            return [scores[pair] for pair in missing]

        with self._alone():
            found = self._scores.filled(pairs, made)
        return torch.tensor([found[pair] for pair in pairs])

    def _claim_chunks(self, pairs: list[tuple[bytes, Any]]) -> Iterator[list[tuple[bytes, Any]]]:
        """Cut into batches: many claims about one picture share its keys and values, few are not worth a batch."""
        of_picture: dict[bytes, list[tuple[bytes, Any]]] = {}
        for pair in pairs:
            of_picture.setdefault(pair[0], []).append(pair)
        few = [pair for group in of_picture.values() if len(group) < SHARE for pair in group]
        for group in [few, *(group for group in of_picture.values() if len(group) >= SHARE)]:
            size = self.at_once if group is few else CLAIMS
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _asked(self, text: str) -> MatchingText:
        return self._tokenised(text)

    def _match(
        self, images: Sequence[Image.Image], keys: Sequence[bytes], texts: Sequence[MatchingText]
    ) -> list[Match]:
        states = self._encode(keys, images)
        ids, mask = self._batch(texts)
        self._here.attention = []
        try:
            with torch.enable_grad():
                logits = self._itm(states, ids, mask)
                (attention,) = self._here.attention
                (gradient,) = torch.autograd.grad(logits[:, 1].sum(), attention)
        finally:
            del self._here.attention
        attention = attention.detach()
        cam = gradcam(attention, gradient, mask)
        shares = share_on_class(attention, mask).tolist()
        constant = (cam.amax((-2, -1)) == cam.amin((-2, -1))).tolist()
        cosines = self._cosines(states, texts).tolist()
        # clones, so that a match held in memory does not hold its whole batch
        maps = _apart(heat_map(cam, self.side).cpu())
        notes = map(_note, texts, shares, constant)
        return [Match(*told) for told in zip(maps, cosines, notes, shares, strict=True)]

    def _probabilities(self, states: Tensor, texts: Sequence[MatchingText]) -> list[float]:
        logits = self._itm(states, *self._batch(texts)).float()
        if torch.isnan(logits).any():
            raise LogitsError("The matcher's logits hold NaN: its weights overflow. Load the matcher in float32.")
        slope, offset = self.platt
        odds = slope * (logits[:, 1] - logits[:, 0]) + offset  # of two classes, the logit of p is their difference
        probabilities: list[float] = odds.sigmoid().clamp(EDGE, 1 - EDGE).tolist()
        return probabilities

    def _itm(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the ITM logits, [B, 2]; states [B or 1, 1 + g*g, D], ids and mask [B, L]."""
        ids = ids.clone()
        ids[:, 0] = self.first
        text = self.model.text_encoder(
            input_ids=ids, attention_mask=_unless_full(mask), encoder_hidden_states=states, return_dict=True
        )
        logits: Tensor = self.model.itm_head(text.last_hidden_state[:, 0])
        return logits

    def _swap_attention(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        held: list[Tensor] | None = getattr(self._here, "attention", None)
        if held is None:
            return None
        leaf = args[0].detach().requires_grad_(True)
        held.append(leaf)
        return (leaf,)

    def _cosines(self, states: Tensor, texts: Sequence[MatchingText]) -> Tensor:
        """Return the ITC cosine of each pair, [B] in [-1, 1]; each distinct text is encoded once."""

        def made(missing: list[MatchingText]) -> Sequence[Tensor]:
            ids, mask = self._batch(missing)
            out = self.model.text_encoder(input_ids=ids, attention_mask=_unless_full(mask), return_dict=True)
            return nn.functional.normalize(self.model.text_proj(out.last_hidden_state[:, 0]).float(), dim=-1).unbind()

        held = self._texts.filled(texts, made)
        image = nn.functional.normalize(self.model.vision_proj(states[:, 0]).float(), dim=-1)
        return (image * torch.stack([held[text] for text in texts])).sum(-1)

    def _encode(self, keys: Sequence[bytes], images: Sequence[Image.Image]) -> Tensor:
        """Return the tower's states, [B, 1 + g*g, D]; [1, ...] where all are one picture, to be broadcast."""
        pictures = dict(zip(keys, images, strict=True))

        def made(missing: list[bytes]) -> list[Tensor]:
            pixels = self._pixels([pictures[key] for key in missing])
            return _apart(self.model.vision_model(pixels, return_dict=True).last_hidden_state)

        held = self._seen.filled(pictures, made, lambda states: states.nbytes)
        return held[keys[0]][None] if len(held) == 1 else torch.stack([held[key] for key in keys])

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        stacked = np.stack([np.asarray(squash(image, self.side, self.side)) for image in images])
        pixels = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in self._scale)
        return ((pixels / 255 - mean) / std).to(self.model.dtype)

    def _batch(self, texts: Sequence[MatchingText]) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask, [B, L], padded on the right."""
        longest, pad = max(len(text.ids) for text in texts), self.tokenizer.pad_token_id or 0
        ids = [[*text.ids, *[pad] * (longest - len(text.ids))] for text in texts]
        mask = [[1] * len(text.ids) + [0] * (longest - len(text.ids)) for text in texts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _apart(rows: Tensor) -> list[Tensor]:
    """Return rows, each by itself in memory."""
    return [row.clone() for row in rows] if len(rows) > 1 else [rows[0]]


def _unless_full(mask: Tensor) -> Tensor | None:
    """Return None for a mask of ones: a text alone and in a batch then takes the same path."""
    return None if bool(mask.all()) else mask


def _note(text: MatchingText, share: float, constant: bool) -> str | None:
    notes = [text.note] if text.note else []
    if constant:
        notes.append("the relevance map is constant, so it says nothing; the whole picture is kept")
    elif share > 0.5:
        notes.append(
            f"{share:.0%} of the matching text's attention rests on the image's class token, which the map drops: "
            "the map may be little better than chance"
        )
    return "; ".join(notes) or None
