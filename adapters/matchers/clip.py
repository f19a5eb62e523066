"""`clip`: a CLIP as matcher: attention and its gradient in its image tower, and its cosines, calibrated.

Source: CLIP (arXiv:2103.00020). The map is what the class token gathers from each patch through the tower's last
layers: in each the attention times the gradient of the cosine, rectified, averaged over heads, and the layers one
behind the other (Chefer et al., arXiv:2103.15679). What goes by way of prompts is left out, since they show nothing.

Ours: how many layers. One alone is at its highest beside the object more often.

Two other maps, `mapped`: "text" is the attention of the text over the patches as the tower projects them, "saliency"
that of the class token over them in the last layer, whatever the text (DiSa, arXiv:2505.19373).

`dual-prompt`: a CLIP with DCAR's dual prompts as matcher; what `lvlm-guard train dual-prompt` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import salient
from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.adapters.matchers import EDGE, MATCH_BYTES, AdapterMatcher, caption_of, place_for, required
from lvlm_guard.adapters.retrieval.claims import TEMPLATE, claimed
from lvlm_guard.adapters.retrieval.folder import FILE, untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import LogitsError
from lvlm_guard.matching.loading import device_of
from lvlm_guard.matching.match import Match, Matcher
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import heat_map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = 16
"""Pairs of picture and text in one pass with gradients."""

LAYERS = 3
"""Of the image tower, the last ones; chosen on validation scenes, see `python -m embedded_training.pointing`."""

FEATURES, TEXTS = 4096, 4096

UNCALIBRATED = "this CLIP is not calibrated, so the score is its raw cosine and the ratio of AGLA's mask means little"


class ClipMatcher(AdapterMatcher):
    """A matcher on a retriever, tuned or not.

    Args:
        retriever: its CLIP is set to eager attention, whose weights the map is made of.
        name: what `version` calls it.
        layers: of the image tower, the last ones, that the map is made of; all where it has fewer.
    """

    name = "clip"
    otherwise: str | None = "openai/clip-vit-base-patch32"
    template = TEMPLATE

    def __init__(self, retriever: DualPromptRetriever, name: str | None = None, layers: int = LAYERS) -> None:
        self.retriever = retriever
        base = retriever.model.base
        base.set_attn_implementation("eager")
        vision = base.config.vision_config
        self.side: int = vision.image_size
        self._cells = vision.image_size // vision.patch_size
        self._layers = [getattr(layer, "base_layer", layer) for layer in base.vision_model.encoder.layers[-layers:]]
        self.temperature = retriever.card.temperature or retriever.model.tau
        super().__init__(f"{name or self.name}:{_digest(retriever, layers)}")
        self._matches: Recent[tuple[bytes, str], Match] = Recent(MATCH_BYTES)
        self._images: Recent[bytes, Tensor] = Recent(FEATURES)
        self._texts: Recent[str, Tensor] = Recent(TEXTS)
        self._map = ""

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> ClipMatcher:
        """Load a matcher.

        Args:
            source: a retriever's folder; a CLIP's folder or hub id; "embedded".
            device: where it runs; None is the CPU.

        Raises:
            WeightsError: it can't be had.
            UnsupportedModelError: it is no CLIP.
        """
        place = ADAPTERS / cls.name if str(source) == "embedded" else source
        with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
            if (Path(place) / FILE).is_file():
                retriever = DualPromptRetriever.from_pretrained(place, device=device)
            else:
                retriever = untuned(place)
                retriever.model.to(torch.device(device or "cpu"))
            return cls(retriever)

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load what the name stands for with a model; raises `WeightsError` where nothing says it."""
        return cls.from_pretrained(place_for(cls.name, model, cls.otherwise), device=device_of(model))

    @property
    def device(self) -> torch.device:
        """Where the CLIP is."""
        return self.retriever.model.device

    def mapped(self, how: str) -> ClipMatcher:
        """Return this matcher with another map, "text" or "saliency"; it shares everything else."""
        if how not in ("text", "saliency") or type(self)._shown is not ClipMatcher._shown:
            super().mapped(how)
        other = copy(self)
        other._version, other._map, other._matches = f"{self._version}@{how}", how, Recent(MATCH_BYTES)
        return other

    def knows(self, claims: Sequence[str]) -> list[bool]:
        """Return whether claims evoke a picture, of a CLIP that was trained to tell (`train claims`, visualness)."""
        if self._memory is None or self._memory.kind != "visualness" or not claims:
            return [True] * len(claims)
        with self._alone():
            return [bool(v > 0.5) for v in self.retriever.visualness([_read(claim) for claim in claims])]

    def forget(self) -> None:
        """Drop the matches and the features of pictures that are remembered."""
        self._matches.clear()
        self._images.clear()

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i; each distinct pair is computed once.

        Args:
            images: RGB pictures of any size.
            texts: as the user asked them; "is there a dog?" is read as "a photo of a dog".

        Raises:
            TextError: a text is empty.
            LogitsError: a map holds NaN.
        """
        keys = [digest(image) for image in images]
        read = [_read(text) for text in texts]
        pairs = {(key, text): image for key, text, image in zip(keys, read, images, strict=True)}
        found = {pair: self._matches.get(pair) for pair in pairs}
        missing = [pair for pair, match in found.items() if match is None]
        with self._alone():
            for start in range(0, len(missing), AT_ONCE):
                chunk = missing[start : start + AT_ONCE]
                made = self._match([key for key, _ in chunk], [pairs[pair] for pair in chunk], [t for _, t in chunk])
                for pair, match in zip(chunk, made, strict=True):
                    found[pair] = match
                    self._matches.put(pair, match, match.relevance.nbytes)
        return [found[pair] for pair in zip(keys, read, strict=True)]  # type: ignore[misc]

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return cosines, [N, M] float32, without word weights.

        Raises:
            TextError: a text is empty.
        """
        read = [_read(text) for text in texts]
        with self._alone():
            return self._cosines(self._image_features(images), read, self._text_features(read), images)

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return the calibrated probability that each claim holds in the picture, [n] float32 in (0, 1).

        Raises:
            UnsupportedCallError: the CLIP is not calibrated.
            TextError: a claim is empty.
        """
        if not claims:
            return torch.empty(0)
        return self._probability(self.similarity([image], claims)[0])

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where the CLIP is not calibrated."""
        self.retriever.probability(torch.zeros(1))

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n]; each picture and claim is encoded once."""
        if not claims:
            return torch.empty(0)
        with self._alone():
            read = [_read(claim) for claim in claims]
            texts, seen = self._text_features(read), self._image_features(images)
            if self._memory is not None:
                return self._probability(self._cosines(seen, read, texts, images).diagonal())
            return self._probability((seen * texts).sum(-1))

    def _probability(self, scores: Tensor) -> Tensor:
        return self.retriever.probability(scores).clamp(EDGE, 1 - EDGE)

    def _match(self, keys: Sequence[bytes], images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        model = self.retriever.model
        said = self._text_features(texts).to(model.device)
        pixels = self.retriever.image_inputs(images).to(model.device, model.base.dtype)
        seen, scores, shown = self._shown(pixels, said, texts)
        for key, row in zip(keys, seen.detach().cpu(), strict=True):
            self._images.put(key, row.clone())  # so that claims about it need the tower no more
        cam = shown.view(-1, self._cells, self._cells)
        constant = (cam.amax((-2, -1)) == cam.amin((-2, -1))).tolist()
        maps = heat_map(cam, self.side).cpu()
        cosines = scores.detach().float().cpu()
        if self._memory is not None:
            cosines = self._cosines(seen.detach().cpu(), texts, said.cpu(), images).diagonal()
        if not bool(torch.isfinite(cosines).all()):
            raise LogitsError("A cosine is no number: the weights are damaged or overflow. Load the CLIP in float32.")
        calibrated = self.retriever.card.calibration is not None
        scored = self._probability(cosines) if calibrated else cosines
        return [Match(maps[k].clone(), float(scored[k]), _note(calibrated, constant[k])) for k in range(len(maps))]

    def _shown(self, pixels: Tensor, said: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of pictures [n, d], their cosines with texts [n], and what each patch shows [n, patches].

        Of an object that has a prompt of its own in the tower that is the prompt's attention, which sums to 1
        (Prompt-CAM, arXiv:2501.09333).
        """
        model, kept, patches = self.retriever.model, list[Tensor](), self._cells**2
        if self._map:
            seen = model.encode_image(pixels)
            return seen, (seen * said).sum(-1), self._looked(pixels, said).reshape(-1, len(pixels), patches).mean(0)
        hooks = [self._layers[0].register_forward_pre_hook(_begin)]
        hooks += [
            # the untuned tower may run beside, without gradients
            layer.self_attn.register_forward_hook(
                lambda _module, _args, output: kept.append(output[1]) if output[1].requires_grad else None
            )
            for layer in self._layers
        ]
        try:
            with torch.enable_grad():
                seen = model.encode_image(pixels)
                scores = (seen * said).sum(-1)
                slopes = torch.autograd.grad(scores.sum(), kept)
        finally:
            for hook in hooks:
                hook.remove()
        # an adapter may read a picture several times
        shown = gathered(kept, slopes, patches).reshape(-1, len(pixels), patches).mean(0)
        names = self._memory.names if self._memory is not None and self._memory.kind == "classes" else ()
        for row, name in enumerate(map(claimed, texts)):
            if name in names:
                own = kept[-1][row, :, 1 + patches + names.index(name), 1 : 1 + patches].detach().float().mean(0)
                shown[row] = own / own.sum()
        return seen, scores, shown

    def _looked(self, pixels: Tensor, said: Tensor) -> Tensor:
        base = self.retriever.model.base
        if self._map == "saliency":
            return salient(base, pixels)
        vision, projection = base.vision_model, getattr(base.visual_projection, "base_layer", base.visual_projection)
        states = vision(pixel_values=pixels).last_hidden_state[:, 1 : 1 + self._cells**2]
        patches = normalize(projection(vision.post_layernorm(states)).float(), dim=-1)
        asked = said[:, : patches.shape[-1]].repeat(len(patches) // len(said), 1)
        weights: Tensor = ((patches @ asked[..., None])[..., 0] / self.retriever.model.tau).softmax(-1)
        return weights

    @property
    def _memory(self) -> Any:
        return getattr(self.retriever, "memory", None)  # encoders of other families have none

    def _cosines(self, image: Tensor, texts: Sequence[str], text: Tensor, images: Sequence[Image.Image]) -> Tensor:
        if self._memory is None:
            return image @ text.T
        return self.retriever.cosines(image, texts, text, lambda: self.retriever.image_inputs(images))

    def _image_features(self, images: Sequence[Image.Image]) -> Tensor:
        keys = [digest(image) for image in images]
        held = {key: self._images.get(key) for key in keys}
        missing = {key: image for key, image in zip(keys, images, strict=True) if held[key] is None}
        if missing:
            for key, row in zip(missing, self.retriever.image_features(list(missing.values())), strict=True):
                held[key] = row
                self._images.put(key, row.clone())
        return torch.stack([held[key] for key in keys])  # type: ignore[misc]

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        held = {text: self._texts.get(text) for text in texts}
        missing = [text for text, row in held.items() if row is None]
        if missing:
            for text, row in zip(missing, self.retriever.text_features(missing), strict=True):
                held[text] = row
                self._texts.put(text, row.clone())
        return torch.stack([held[text] for text in texts])  # type: ignore[misc]


def gathered(attention: Sequence[Tensor], slopes: Sequence[Tensor], patches: int) -> Tensor:
    """Return what the class token gathers from each patch through layers, [n, patches] float32, 0 or more.

    Args:
        attention: of each layer in their order, [n, heads, tokens, tokens]; tokens are the class token, the patches,
            and prompts if there are any.
        slopes: of a score with respect to each of them.
        patches: how many there are.
    """
    row = torch.zeros_like(attention[-1][:, 0, 0], dtype=torch.float32)
    row[:, 0] = 1
    for weights, slope in zip(reversed(attention), reversed(slopes), strict=True):
        through = (weights.detach().float() * slope.float()).clamp(min=0).mean(1)
        row = row + (row[:, None] @ through)[:, 0]
        row[:, 1 + patches :] = 0
    return row[:, 1 : 1 + patches]


def _begin(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let gradients begin at a layer: nothing below it is kept for them."""
    return (args[0].detach().requires_grad_(), *args[1:])


def _read(text: str) -> str:
    return caption_of(required(text))


def _note(calibrated: bool, constant: bool) -> str | None:
    notes = [] if calibrated else [UNCALIBRATED]
    if constant:
        notes.append("the relevance map is constant, so it says nothing; the whole picture is kept")
    return "; ".join(notes) or None


def _digest(retriever: DualPromptRetriever, layers: int) -> str:
    """Return what tells the weights and settings: the card, and every tensor beside the CLIP, or the CLIP's heads."""
    told: Any = hashlib.blake2b(f"{retriever.card!r}, map of {layers} layers".encode(), digest_size=6)
    for name, value in sorted(retriever.model.state_dict().items()):
        if "dual_prompt_" in name or "_model.head." in name or name.endswith("_projection.weight"):
            told.update(value.detach().float().cpu().numpy().tobytes())
    memory = getattr(retriever, "memory", None)
    told.update(repr(memory and (memory.kind, memory.names)).encode())
    for name, value in sorted(memory.tensors.items() if memory is not None else ()):
        told.update(name.encode() + value.float().numpy().tobytes())
    return str(told.hexdigest())


class DualPromptMatcher(ClipMatcher):
    """As `ClipMatcher`, on a trained retriever; any CLIP's folder that is none is matched untuned.

    The maps and cosines are without word weights, which would need a text pass for each pair.
    """

    name = "dual-prompt"
    otherwise = None
