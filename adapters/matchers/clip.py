"""`clip`: a CLIP as matcher: attention and its gradient in its image tower, and its cosines, calibrated.

Source: CLIP (arXiv:2103.00020). The map is what the class token gathers from each patch through the tower's last
layers: in each the attention times the gradient of the cosine, rectified, averaged over heads, and the layers one
behind the other (Chefer et al., arXiv:2103.15679). What goes by way of prompts is left out, since they show nothing.

Ours: how many layers. One alone is at its highest beside the object more often.

Two other maps, `mapped`: "text" is the attention of the text over the patches as the tower projects them, "saliency"
that of the class token over them in the last layer, whatever the text (DiSa, arXiv:2505.19373).

`dual-prompt`: a CLIP with DCAR's dual prompts as matcher; what `lvlm-guard train dual-prompt` writes.

`siglip`: SigLIP (arXiv:2303.15343), and SigLIP 2 (arXiv:2502.14786) of one resolution. A text and a picture match with
the probability sigmoid(a cos + b): by default by the model's own scale and bias, which are those of one text among the
thousands of a batch in training and believe little; `config.lvlm_guard["platt"]` has a and b fitted on validation.
Ours: there is no class token, so the map begins at what the attention pooling reads: each patch's state times the
cosine's gradient there, rectified. From there on through the layers as for CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import Inputs, salient
from lvlm_guard.adapters.matchers import AdapterMatcher, caption_of, digested
from lvlm_guard.adapters.retrieval.claims import claimed
from lvlm_guard.adapters.retrieval.folder import FILE, RetrieverCard, untuned
from lvlm_guard.adapters.retrieval.model import CaptionInputs, RetrievalModel
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import LogitsError, TextError, UnsupportedModelError
from lvlm_guard.matching.match import EDGE, Match
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.weights import how_to_fetch, read

LAYERS = 3
"""Of the image tower, the last ones; chosen on validation scenes, see `python -m embedded_training.pointing`."""

FEATURES, TEXTS = 4096, 4096

UNCALIBRATED = "this CLIP is not calibrated, so the score is its raw cosine and the ratio of AGLA's mask means little"


class ClipMatcher(AdapterMatcher):
    """A matcher on a retriever, tuned or not.

    Args:
        retriever: its CLIP is set to eager attention, whose weights the map is made of.
        layers: of the image tower, the last ones, that the map is made of; all where it has fewer.
    """

    name = "clip"
    otherwise: ClassVar[str | None] = "openai/clip-vit-base-patch32"
    maps: ClassVar[Sequence[str]] = ("text", "saliency")
    """What `mapped` has."""

    def __init__(self, retriever: DualPromptRetriever, layers: int = LAYERS) -> None:
        self.retriever = retriever
        base, memory = retriever.model.base, retriever.memory
        base.set_attn_implementation("eager")
        vision = base.config.vision_config
        self.side: int = vision.image_size
        self._cells = vision.image_size // vision.patch_size
        self._layers = [getattr(layer, "base_layer", layer) for layer in base.vision_model.encoder.layers[-layers:]]
        self.temperature = retriever.card.temperature or retriever.model.tau
        # the card, and every tensor beside the CLIP, or the CLIP's heads
        told = digested(f"{retriever.card!r}, map of {layers} layers", retriever.model, _tells)
        told.update(repr(memory and (memory.kind, memory.names)).encode())
        for key, value in sorted(memory.tensors.items() if memory is not None else ()):
            told.update(key.encode() + value.float().numpy().tobytes())
        super().__init__(retriever.model, f"{self.name}:{told.hexdigest()}")
        self._seen: Recent[bytes, Tensor] = Recent(FEATURES)
        self._texts: Recent[str, Tensor] = Recent(TEXTS)
        self._map = ""

    @classmethod
    def _read(cls, place: str, device: torch.device) -> Self:
        if (Path(place) / FILE).is_file():
            return cls(DualPromptRetriever.from_pretrained(place, device=device))
        retriever = untuned(place)
        retriever.model.to(device)
        return cls(retriever)

    def mapped(self, how: str) -> ClipMatcher:
        """Return this matcher with another map, "text" or "saliency"; it shares everything else."""
        if how not in self.maps:
            super().mapped(how)
        other = copy(self)
        other._version, other._map, other._matches = f"{self._version}@{how}", how, Recent(self._matches.capacity)
        return other

    def knows(self, claims: Sequence[str]) -> list[bool]:
        """Return whether claims evoke a picture, of a CLIP that was trained to tell (`train claims`, visualness)."""
        memory = self.retriever.memory
        if memory is None or memory.kind != "visualness" or not claims:
            return [True] * len(claims)
        with self._alone():
            return [bool(v > 0.5) for v in self.retriever.visualness([caption_of(claim) for claim in claims])]

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return cosines, [N, M] float32, without word weights; raises `TextError` where a text is empty."""
        read = [caption_of(text) for text in texts]
        with self._alone():
            return self._cosines(self._image_features(images), read, self._text_features(read), images)

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """See `Matcher`; raises `UnsupportedCallError` where the CLIP is not calibrated, `TextError` too."""
        return self._probability(self.similarity([image], claims)[0]) if claims else torch.empty(0)

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where the CLIP is not calibrated."""
        self.retriever.probability(torch.zeros(1))

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n]; each picture and claim is encoded once."""
        if not claims:
            return torch.empty(0)
        with self._alone():
            read = [caption_of(claim) for claim in claims]
            texts, seen = self._text_features(read), self._image_features(images)
            if self.retriever.memory is None:
                return self._probability((seen * texts).sum(-1))
            return self._probability(self._cosines(seen, read, texts, images).diagonal())

    def _probability(self, scores: Tensor) -> Tensor:
        return self.retriever.probability(scores).clamp(EDGE, 1 - EDGE)

    def _asked(self, text: str) -> str:
        return caption_of(text)

    def _match(self, images: Sequence[Image.Image], keys: Sequence[bytes], texts: Sequence[str]) -> list[Match]:
        model = self.retriever.model
        said = self._text_features(texts).to(model.device)
        pixels = self.retriever.image_inputs(images).to(model.device, model.base.dtype)
        seen, scores, shown = self._shown(pixels, said, texts)
        for key, row in zip(keys, _apart(seen.detach().cpu()), strict=True):
            self._seen.put(key, row)  # so that claims about it need the tower no more
        cam = shown.view(-1, self._cells, self._cells)
        constant = (cam.amax((-2, -1)) == cam.amin((-2, -1))).tolist()
        maps = heat_map(cam, self.side).cpu()
        cosines = scores.detach().float().cpu()
        if self.retriever.memory is not None:
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
        patches, memory, kept = self._cells**2, self.retriever.memory, list[Tensor]()
        if self._map:
            seen, shown = self.retriever.model.encode_image(pixels), self._looked(pixels, said)
            scores = (seen * said).sum(-1)
        else:
            seen, scores, kept, slopes = self._traced(pixels, said)
            shown = gathered(kept, slopes, patches)
        shown = shown.reshape(-1, len(pixels), patches).mean(0)  # an adapter may read a picture several times
        names = memory.names if kept and memory is not None and memory.kind == "classes" else ()
        for row, name in enumerate(map(claimed, texts)):
            if name in names:
                own = kept[-1][row, :, 1 + patches + names.index(name), 1 : 1 + patches].detach().float().mean(0)
                shown[row] = own / own.sum()
        return seen, scores, shown

    def _traced(
        self, pixels: Tensor, said: Tensor, *behind: nn.Module
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Return features of pictures, their cosines with texts, what was made on the way, and their slopes there: each
        layer's attention, [n, heads, tokens, tokens], and what modules behind the layers gave."""
        kept: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            made = output[1] if isinstance(output, tuple) else output
            if made.requires_grad:  # the untuned tower may run beside, without gradients
                kept.append(made)

        with ExitStack() as hooks, torch.enable_grad():
            hooks.enter_context(self._layers[0].register_forward_pre_hook(_begin))
            for module in (*(one.self_attn for one in self._layers), *behind):
                hooks.enter_context(module.register_forward_hook(keep))
            seen = self.retriever.model.encode_image(pixels)
            scores = (seen * said).sum(-1)
            return seen, scores, kept, list(torch.autograd.grad(scores.sum(), kept))

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

    def _cosines(self, image: Tensor, texts: Sequence[str], text: Tensor, images: Sequence[Image.Image]) -> Tensor:
        return self.retriever.cosines(image, texts, text, lambda: self.retriever.image_inputs(images))

    def _image_features(self, images: Sequence[Image.Image]) -> Tensor:
        keys = [digest(image) for image in images]
        of = dict(zip(keys, images, strict=True))
        held = self._seen.filled(of, lambda keys: _apart(self.retriever.image_features([of[key] for key in keys])))
        return torch.stack([held[key] for key in keys])

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        held = self._texts.filled(texts, lambda missing: _apart(self.retriever.text_features(missing)))
        return torch.stack([held[text] for text in texts])


def gathered(attention: Sequence[Tensor], slopes: Sequence[Tensor], patches: int, read: Tensor | None = None) -> Tensor:
    """Return what is gathered from each patch through layers, [n, patches] float32, 0 or more.

    Args:
        attention: of each layer in their order, [n, heads, tokens, tokens]; tokens are the class token, the patches,
            and prompts if there are any.
        slopes: of a score with respect to each of them.
        read: how much of each patch is read behind the layers, where there is no class token; None for what that reads.
    """
    first, row = 0, read
    if row is None:
        first, row = 1, torch.zeros_like(attention[-1][:, 0, 0], dtype=torch.float32)
        row[:, 0] = 1
    for weights, slope in zip(reversed(attention), reversed(slopes), strict=True):
        through = (weights.detach().float() * slope.float()).clamp(min=0).mean(1)
        row = row + (row[:, None] @ through)[:, 0]
        row[:, first + patches :] = 0
    return row[:, first : first + patches]


def _begin(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let gradients begin at a layer: nothing below it is kept for them."""
    return (args[0].detach().requires_grad_(), *args[1:])


def _apart(rows: Tensor) -> list[Tensor]:
    """Return copies of rows, so that one that is remembered does not hold all."""
    return [row.clone() for row in rows]


def _note(calibrated: bool, constant: bool) -> str | None:
    notes = [] if calibrated else [UNCALIBRATED]
    if constant:
        notes.append("the relevance map is constant, so it says nothing; the whole picture is kept")
    return "; ".join(notes) or None


def _tells(name: str) -> bool:
    return "dual_prompt_" in name or "_model.head." in name or name.endswith("_projection.weight")


class DualPromptMatcher(ClipMatcher):
    """As `ClipMatcher`, on a trained retriever, without word weights, which would need a text pass for each pair."""

    name, otherwise = "dual-prompt", None


class SiglipRetriever(DualPromptRetriever):
    """A `SiglipModel` as a retriever; it can't be trained or saved.

    Args:
        base: the model.
        tokenizer, image_processor: of it; of the latter only the mean and deviation of pixels count, for pictures are
            squashed, not cropped.
    """

    def __init__(self, base: Any, tokenizer: Any, image_processor: Any) -> None:
        vision, text = base.config.vision_config, base.config.text_config
        mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        inputs = Inputs(tokenizer, vision.image_size, mean, std, text.max_position_embeddings)
        platt = (getattr(base.config, "lvlm_guard", None) or {}).get("platt")
        self.fitted = platt is not None
        a, b = platt or (base.logit_scale.exp(), base.logit_bias)
        card = RetrieverCard("", text.hidden_size, vision.hidden_size, adapter=False, calibration=(float(a), float(b)))
        super().__init__(RetrievalModel(base.requires_grad_(False)), card, inputs)

    def text_inputs(self, texts: Sequence[str]) -> CaptionInputs:
        """Return texts as the model takes them; raises `TextError` where one is too long."""
        length = self.inputs.context
        made = [self.inputs.tokenizer(text.lower())["input_ids"] for text in texts]
        for text, ids in zip(texts, made, strict=True):
            if len(ids) > length:
                raise TextError(
                    f"A text has {len(ids)} word pieces, but SigLIP reads {length}. Shorten it: {text[:60]!r}."
                )
        # trained on texts that are filled up to the full length, and attends to what fills them
        how: dict[str, Any] = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
        padded = self.inputs.tokenizer.pad({"input_ids": made}, **how)["input_ids"]
        return CaptionInputs(padded, torch.ones_like(padded), torch.ones_like(padded, dtype=torch.bool))


class SiglipMatcher(ClipMatcher):
    """As `ClipMatcher`, on a `SiglipRetriever`."""

    name, otherwise, maps = "siglip", "google/siglip-base-patch16-224", ()

    def __init__(self, retriever: SiglipRetriever, layers: int = LAYERS) -> None:
        super().__init__(retriever, layers)
        if not retriever.fitted:
            self._version += ":uncalibrated"

    @classmethod
    def _read(cls, place: str, device: torch.device) -> SiglipMatcher:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, SiglipModel

        def load() -> SiglipMatcher:
            kind = AutoConfig.from_pretrained(place).model_type
            if kind != "siglip":
                raise UnsupportedModelError(
                    f"{place!r} holds a model of the type {kind!r}, but this matcher reads 'siglip': SigLIP, or SigLIP "
                    "2 of one resolution, such as google/siglip2-base-patch16-224 (none of its NaFlex models)."
                )
            base: Any = SiglipModel.from_pretrained(place, dtype=torch.float32)
            parts = AutoTokenizer.from_pretrained(place), AutoImageProcessor.from_pretrained(place)
            return cls(SiglipRetriever(base.to(device), *parts))

        return read(f"The SigLIP {place!r}", place, load, absent=how_to_fetch(place, "matcher=DIR"))

    def _shown(self, pixels: Tensor, said: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.retriever.model.base.vision_model.post_layernorm
        seen, scores, kept, slopes = self._traced(pixels, said, pooled)
        row = (kept.pop().detach() * slopes.pop()).sum(-1).float().clamp(min=0)
        return seen, scores, gathered(kept, slopes, self._cells**2, row)
