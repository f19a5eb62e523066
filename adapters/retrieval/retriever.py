"""`DualPromptRetriever`: pictures and captions in, similarities and ranks out; trained or untuned."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.loading import is_tuned
from lvlm_guard.adapters.retrieval.bank import WordBank, pooled
from lvlm_guard.adapters.retrieval.claims import claim, claimed, tells
from lvlm_guard.adapters.retrieval.model import AT_ONCE, CaptionInputs, RetrievalModel, again, caption_inputs, scaled
from lvlm_guard.adapters.testtime import crops, tune
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching.vocabulary import claim_about

if TYPE_CHECKING:
    from lvlm_guard.adapters.prompts import DualPromptConfig
    from lvlm_guard.adapters.retrieval.folder import Memory, RetrieverCard


class Ranked(NamedTuple):
    """A candidate's place in the list that was given, and its score."""

    candidate: int
    score: float


class WordWeight(NamedTuple):
    """A piece of a caption, w (a difference of cosines), and the factor its embedding is multiplied by."""

    word: str
    raw: float
    factor: float


SLOTS = 4
"""Tokens of "a photo of a", which prompts that are tuned on a picture start from."""


class DualPromptRetriever:
    """Scores pictures against captions with a CLIP, its prompts and its word weights.

    Without prompts and with strength 0 it is plain CLIP, the baseline of every figure. Results are float32 tensors on
    the CPU. One object serves many threads, one call at a time. Methods that read pictures or captions raise
    `ImageError` and `TextError` where one can't be used. `folder.make` builds one.
    """

    def __init__(self, model: RetrievalModel, card: RetrieverCard, inputs: Inputs) -> None:
        self.model, self.card, self.inputs = model.eval(), card, inputs
        self.memory: Memory | None = None
        """What claims are scored with beside their cosines."""
        self.views: Callable[[Tensor], Tensor] = crops
        """Makes views of pixels [3, side, side], the first as they are, [views, 3, side, side]; of a memory "views"."""

    @property
    def config(self) -> DualPromptConfig | None:
        """The configuration of the prompts in use; None where there are none."""
        clip = self.model.clip
        found: Any = clip.peft_config[clip.active_adapter] if is_tuned(clip) else None
        return found if hasattr(found, "placeholder_ids") else None

    def text_inputs(self, texts: Sequence[str]) -> CaptionInputs:
        """Return captions as the model takes them, placeholders included; raises as `caption_inputs` does."""
        return self._read(texts, self.config.placeholder_ids if self.config else ())

    def _read(self, texts: Sequence[str], placeholder_ids: Sequence[int] = ()) -> CaptionInputs:
        most, too_long = self.inputs.context, self.card.too_long
        return caption_inputs(self.inputs.tokenizer, texts, placeholder_ids, length=most, too_long=too_long)

    def image_inputs(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels [n, 3, side, side] of pictures of any size; raises `KnobError` for none."""
        if not len(images):
            raise KnobError("Give at least one picture.")
        return self.inputs.pixels(images)

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalised features of pictures, [n, d]."""
        return self.model.images(self.image_inputs(images))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return normalised features of captions without word weights, [m, d].

        A claim ("a photo of a dog") has the mean feature of what the card says instead of it, if it does.
        """
        if not self.card.templates and not self.card.sentences:
            return self.model.texts(self.text_inputs(texts))
        return pooled([self.said(text) for text in texts], lambda said: self.model.texts(self.text_inputs(said)))

    def frozen_features(self, pixels: Tensor | None = None, texts: Sequence[str] | None = None) -> tuple[Any, Any]:
        """Return (image [n, d], text [m, d]) of the untuned CLIP, None for a side not given; for losses, once."""
        image = None if pixels is None else self.model.images(pixels, frozen=True)
        return image, None if texts is None else self.model.texts(self._read(texts), frozen=True)

    def said(self, text: str) -> tuple[str, ...]:
        """Return what is read for a text: what the card says instead of a claim, else the text itself."""
        if (name := claimed(text)) is None:
            return (text,)
        return (*(claim_about(name, one) for one in self.card.templates), *self.card.sentences.get(name, ())) or (text,)

    def visualness(self, texts: Sequence[str]) -> Tensor:
        """Return how far texts evoke a picture, [n] from 0 to 1; above .5 it is worth asking a picture about them.

        A CLIP that was not trained for it (`train claims --preset visualness`) says 1 where a text names an object, a
        colour or a number of the word bank, else 0.
        """
        if self.memory is None or self.memory.kind != "visualness":
            return torch.tensor([float(tells(text, WordBank.general())) for text in texts])
        slope, offset = self.memory.tensors["line"]
        return torch.sigmoid(-slope * (self.text_features(texts) @ self.memory.tensors["null"]) - offset)

    def cosines(
        self,
        image: Tensor,
        texts: Sequence[str],
        text: Tensor | None = None,
        pixels: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Return scores [n, m] of features of pictures [n, d] with texts: cosines, changed for claims by the memory.

        Args:
            image, texts: normalised; m.
            text: features of the texts where they are there already.
            pixels: gives the pictures themselves, [n, 3, side, side]; asked by a memory of "views" alone, which raises
                `UnsupportedCallError` without.
        """
        scores = image @ (self.text_features(texts) if text is None else text).T
        if self.memory is None:
            return scores
        names = [claimed(one) for one in texts]
        if self.memory.kind != "views":
            return self.memory.scored(image, scores, names, self.model.tau)
        at = [k for k, name in enumerate(names) if name in self.memory.names]
        if not at:
            return scores
        if pixels is None:
            raise UnsupportedCallError("This adapter tunes its prompts on each picture, so features don't suffice.")
        made = self.tuned(pixels())[:, [self.memory.names.index(str(names[k])) for k in at]]
        return scores.index_copy(1, torch.tensor(at), made)

    def tuned(self, pixels: Tensor) -> Tensor:
        """Return cosines [n, names] of pictures with what the memory knows, by prompts tuned on each one's views.

        The prompts are what is added to the embeddings of "a photo of a" in claims. Source: TPT (arXiv:2209.07511) with
        DiffTPT's selection of views (arXiv:2308.06038). Costs the views and a backward pass through the text encoder a
        picture.
        """
        assert self.memory is not None
        inputs, model = self._read([claim(name) for name in self.memory.names]), self.model
        found = []
        with model.lock, torch.inference_mode(False), torch.enable_grad():
            width = model.base.config.text_config.hidden_size
            prompts = nn.ParameterList([torch.zeros(SLOTS, width, device=model.device)])

            def prompted(embedded: Tensor) -> Tensor:
                own = embedded[:, 1 : 1 + SLOTS] + prompts[0].to(embedded)
                return torch.cat([embedded[:, :1], own, embedded[:, 1 + SLOTS :]], 1)

            def logits(views: Tensor) -> Tensor:
                said = model.encode_text(inputs.input_ids, inputs.attention_mask, prompted)
                return views @ said.T / model.tau

            for each in pixels:
                views = model.images(self.views(each)).to(model.device)
                found.append(tune(views, prompts, logits, share=0.3, alike=0.8).cpu() * model.tau)
        return torch.stack(found)

    def score(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, weighting: Literal["none", "pairwise"] = "none"
    ) -> Tensor:
        """Return similarities, [n, m] cosines; raises `KnobError` for another weighting.

        "none" is one pass for each picture and caption. "pairwise" weighs each caption's words anew for each picture,
        n * m text passes; needs strength above 0.
        """
        if weighting not in ("none", "pairwise"):
            raise KnobError(f"weighting is {weighting!r}: give 'none' or 'pairwise'; 'two-stage' is of `rank`.")
        return self.directed_scores(images, texts, weighting=weighting)[0]

    def rank(
        self, query: Image.Image | str, candidates: Sequence[Any], *, weighting: str | None = None
    ) -> list[Ranked]:
        """Rank captions for a picture, or pictures for a caption, best first; equal scores keep their order.

        The weighting is as in `RetrieverCard`, None for the card's; another raises `KnobError`. Under "two-stage" the
        first `top` have weighted scores and the rest come after them with plain ones.
        """
        if isinstance(query, str):
            scores = self.directed_scores(list(candidates), [query], weighting=weighting)[1][0]
        else:
            scores = self.directed_scores([query], list(candidates), weighting=weighting)[0][0]
        return [Ranked(i, float(scores[i])) for i in torch.argsort(scores, descending=True, stable=True).tolist()]

    def directed_scores(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, weighting: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ([n, m], [m, n]): scores by which each picture ranks the captions, and each caption the pictures.

        Under "two-stage" the two differ, because each query ranks its own best ones again. A pair's weights come from
        its own picture and are used for that pair alone, so none tells of another.
        """
        weighting = self.card.weighting if weighting is None else weighting
        if weighting not in ("none", "pairwise", "two-stage"):
            raise KnobError(f"weighting is {weighting!r}: give 'none', 'pairwise' or 'two-stage'.")
        pixels, inputs = self.image_inputs(images), self.text_inputs(texts)
        image, top = self.model.images(pixels), self.card.top
        if weighting == "none" or self.card.strength == 0:
            scores = self.cosines(image, texts, pixels=lambda: pixels)
            return scores, scores.T
        frozen, _ = self.frozen_features(pixels)

        def pair(rows: Tensor, columns: Tensor) -> Tensor:
            found = [torch.empty(0)]
            for i, j in zip(rows.split(AT_ONCE), columns.split(AT_ONCE), strict=True):
                text = self.model.texts(inputs[j], self.factors(frozen[i], inputs[j]))
                found.append((image[i] * text).sum(-1))
            return torch.cat(found)

        if weighting == "pairwise":
            pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(texts)))
            scores = pair(*pairs.T).reshape(len(images), len(texts))
            return scores, scores.T
        first = image @ self.model.texts(inputs).T
        return again(first, pair, top), again(first.T, lambda text, image: pair(image, text), top)

    def factors(self, frozen_image: Tensor, inputs: CaptionInputs) -> Tensor:
        """Return the factors of m captions' embeddings for the picture in the same row, [m, tokens].

        By its `frozen_features` [m, d]. A batch's own pairs may be weighed so against their own captions and those
        captions' swaps; never use a row's factors with another picture.
        """
        return scaled(self.model.word_weights(frozen_image, inputs), self.card.strength, inputs.words)

    def word_weights(self, image: Image.Image, text: str) -> list[WordWeight]:
        """Return each piece of a caption with its weight for this picture."""
        inputs = self.text_inputs([text])
        frozen, _ = self.frozen_features(self.image_inputs([image]))
        own = inputs.words[0]
        raw, factors = self.model.word_weights(frozen, inputs)[0, own], self.factors(frozen, inputs)[0, own]
        pieces = [str(self.inputs.tokenizer.decode([token])).strip() for token in inputs.input_ids[0, own].tolist()]
        return [WordWeight(*each) for each in zip(pieces, raw.tolist(), factors.tolist(), strict=True)]

    def probability(self, scores: Tensor) -> Tensor:
        """Return the calibrated probability of a match for cosines of any shape; raises `UnsupportedCallError`."""
        if self.card.calibration is None:
            raise UnsupportedCallError(
                "This retriever was not calibrated, and raw cosines are no probabilities: train it with a validation "
                "split, or use its scores for ranking alone."
            )
        a, b = self.card.calibration
        return torch.sigmoid(a * scores.float() + b)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter as PEFT does, and the card last; return the card's path."""
        from lvlm_guard.adapters.retrieval.folder import save

        return save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> DualPromptRetriever:
        """Load a retriever; options and errors as of `folder.load`."""
        from lvlm_guard.adapters.retrieval.folder import load

        return load(folder, **options)
