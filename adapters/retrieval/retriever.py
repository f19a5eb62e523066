"""`DualPromptRetriever`: pictures and captions in, similarities and ranks out; trained or untuned."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.loading import is_tuned
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import claim, claimed, tells
from lvlm_guard.adapters.retrieval.encoding import AT_ONCE, CaptionInputs, Encoder, WordWeigher, caption_inputs
from lvlm_guard.adapters.retrieval.model import RetrievalModel, again, scaled
from lvlm_guard.adapters.testtime import Cache, crops, tune
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching.vocabulary import article

if TYPE_CHECKING:
    from lvlm_guard.adapters.prompts import DualPromptConfig
    from lvlm_guard.adapters.retrieval.folder import RetrieverCard


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

NEAR = 10
"""Objects that are told apart; FuDD's analysis takes so many, its main table all."""


class Memory(NamedTuple):
    """What is kept beside a CLIP to score claims by, without training.

    - "cache": pictures with pseudo-labels (TFUP, arXiv:2404.16339); `keys`, `values`, `shares`, `text`, see `Cache`.
    - "pairs": what tells two objects apart (FuDD, arXiv:2311.07593): `sides` [names, names, d], what is said of the
      first as against the second, 0 where nothing is. Of a picture's best `NEAR` objects each is scored by the mean of
      its sides against the others; the rest keep their cosines.
    - "negatives": of each object features [names, k, d] of what it stands against (arXiv:2407.08966).
    - "gate": `pair` [2, d], what well-lit and dark pictures are like (CLIP-LIT, arXiv:2303.17569). Of a dark one
      all claims move to `undecided` [1], the cosine at which nothing is told.
    - "visualness": `null` [d], the feature of a picture of nothing (arXiv:2305.10434), and `line` [2], by which the
      cosine of a text with it tells that it is not visual. It changes no score.
    - "concepts": a learnt feature of each object, `text` [names, d] (ConES, arXiv:2305.18993).
    - "classes": nothing, since scores of objects stand behind a picture's feature (Prompt-CAM, see `FeatureHead`).
    - "views": nothing, since prompts are tuned on views of each picture (DiffTPT, arXiv:2308.06038), see `tuned`.

    Args:
        kind: of these.
        names: objects that it knows; of none where it knows all.
        tensors: by name.
    """

    kind: str
    names: tuple[str, ...]
    tensors: dict[str, Tensor]

    def scored(self, image: Tensor, scores: Tensor, names: Sequence[str | None], tau: float) -> Tensor:
        """Return scores [n, m] with those of known claims changed: log-probabilities or log-odds times tau."""
        if self.kind == "gate":
            lit = (image @ self.tensors["pair"].T / tau).softmax(-1)[:, :1]
            gated = self.tensors["undecided"] + lit * (scores - self.tensors["undecided"])
            return torch.where(torch.tensor([name is not None for name in names]), gated, scores)
        places = [(column, self.names.index(name)) for column, name in enumerate(names) if name in self.names]
        if not places:
            return scores
        columns, known = map(list, zip(*places, strict=True))
        if self.kind == "cache":
            held = Cache(self.tensors["keys"], self.tensors["values"], self.tensors["shares"])
            p = (image @ self.tensors["text"].T / tau).softmax(-1)
            changed = tau * held(image, p).clamp(min=1e-12).log()[:, known]
        elif self.kind == "concepts":
            changed = image @ self.tensors["text"][known].T
        elif self.kind == "classes":
            changed = image[:, -len(self.names) - 1 : -1][:, known]
        elif self.kind == "pairs":
            changed = self._told_apart(image, scores[:, columns], self.tensors["sides"][known][:, known])
        else:
            far = torch.einsum("nd,mkd->nmk", image, self.tensors["negatives"][known])
            changed = scores[:, columns] - tau * (far / tau).logsumexp(-1)
        return scores.index_copy(1, torch.tensor(columns, device=scores.device), changed)

    @staticmethod
    def _told_apart(image: Tensor, scores: Tensor, sides: Tensor) -> Tensor:
        best = torch.zeros_like(scores).scatter(1, scores.topk(min(NEAR, scores.shape[1]), 1).indices, 1.0)
        said = torch.einsum("nb,abd->nad", best, sides)  # of b itself nothing is said
        new = torch.einsum("nd,nad->na", image, normalize(said, dim=-1))
        return torch.where((best > 0) & (said.square().sum(-1) > 0), new, scores)


class DualPromptRetriever:
    """Scores pictures against captions with a CLIP, its prompts and its word weights.

    Without prompts and with strength 0 it is plain CLIP, the baseline of every figure. Results are float32 tensors on
    the CPU. One object serves many threads, one call at a time.

    Args:
        model: see `RetrievalModel`; `make` builds one.
        card: how it is used.
        inputs: of the CLIP.
    """

    def __init__(self, model: RetrievalModel, card: RetrieverCard, inputs: Inputs) -> None:
        self.model, self.card, self.inputs = model.eval(), card, inputs
        self.memory: Memory | None = None
        self.views: Callable[[Tensor], Tensor] = crops
        """Makes views of pixels [3, side, side], the first as they are, [views, 3, side, side]; of a memory "views"."""
        self._encoder = Encoder(self.model)
        self._weigher = WordWeigher(self._encoder, inputs.tokenizer)

    @property
    def config(self) -> DualPromptConfig | None:
        """The configuration of the prompts in use; None where there are none."""
        clip = self.model.clip
        if not is_tuned(clip):
            return None
        from lvlm_guard.adapters.prompts import DualPromptConfig

        found = clip.peft_config[clip.active_adapter]
        return found if isinstance(found, DualPromptConfig) else None

    def text_inputs(self, texts: Sequence[str]) -> CaptionInputs:
        """Return captions as the model takes them, placeholders included; raises as `caption_inputs` does."""
        return caption_inputs(
            self.inputs.tokenizer,
            texts,
            placeholder_ids=self.config.placeholder_ids if self.config else (),
            length=self.inputs.context,
            too_long=self.card.too_long,
        )

    def image_inputs(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels [n, 3, side, side] of pictures of any size; raises `ImageError`, and `KnobError` for none."""
        if not len(images):
            raise KnobError("Give at least one picture.")
        return self.inputs.pixels(images)

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalised features of pictures, [n, d]."""
        return self._encoder.images(self.image_inputs(images))

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return normalised features of captions without word weights, [m, d].

        A claim ("a photo of a dog") has the mean feature of what the card says instead of it, if it does.
        """
        if not self.card.templates and not self.card.sentences:
            return self._encoder.texts(self.text_inputs(texts))
        said = [self.said(text) for text in texts]
        found = self._encoder.texts(self.text_inputs([one for each in said for one in each]))
        return torch.stack([normalize(part.mean(0), dim=0) for part in found.split([len(each) for each in said])])

    def said(self, text: str) -> tuple[str, ...]:
        """Return what is read for a text: what the card says instead of a claim, else the text itself."""
        name = claimed(text)
        if name is None:
            return (text,)
        made = tuple(one.format(article=article(name), object=name) for one in self.card.templates)
        return (*made, *self.card.sentences.get(name, ())) or (text,)

    def remember(self, memory: Memory | None) -> None:
        """Score claims with what is remembered beside their cosines."""
        self.memory = memory

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
            image: normalised.
            texts: m.
            text: their features where they are there already.
            pixels: gives the pictures themselves, [n, 3, side, side]; asked by a memory of "views" alone.

        Raises:
            UnsupportedCallError: such a memory knows a claim, and there are no pixels.
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
        inputs = self._plain_inputs([claim(name) for name in self.memory.names])
        found = []
        with self._encoder.lock, torch.inference_mode(False), torch.enable_grad():
            width = self.model.base.config.text_config.hidden_size
            prompts = nn.ParameterList([torch.zeros(SLOTS, width, device=self.model.device)])

            def prompted(embedded: Tensor) -> Tensor:
                own = embedded[:, 1 : 1 + SLOTS] + prompts[0].to(embedded)
                return torch.cat([embedded[:, :1], own, embedded[:, 1 + SLOTS :]], 1)

            def logits(views: Tensor) -> Tensor:
                said = self.model.encode_text(inputs.input_ids, inputs.attention_mask, prompted)
                return views @ said.T / self.model.tau

            for each in pixels:
                views = self._encoder.images(self.views(each)).to(self.model.device)
                found.append(tune(views, prompts, logits, share=0.3, alike=0.8).cpu() * self.model.tau)
        return torch.stack(found)

    def score(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, weighting: Literal["none", "pairwise"] = "none"
    ) -> Tensor:
        """Return similarities, [n, m] cosines.

        Args:
            images: n pictures.
            texts: m captions.
            weighting: "none" is one pass for each picture and caption. "pairwise" weighs each caption's words anew
                for each picture, n * m text passes; needs strength above 0.

        Raises:
            ImageError, TextError: a picture or a caption can't be used.
            KnobError: another weighting.
        """
        if weighting not in ("none", "pairwise"):
            raise KnobError(f"weighting is {weighting!r}: give 'none' or 'pairwise'; 'two-stage' is of `rank`.")
        pixels, inputs = self.image_inputs(images), self.text_inputs(texts)
        if weighting == "none" or self.card.strength == 0:
            return self.cosines(self._encoder.images(pixels), texts, pixels=lambda: pixels)
        rows, columns = (grid.flatten() for grid in torch.meshgrid(
            torch.arange(len(images)), torch.arange(len(texts)), indexing="ij"
        ))  # fmt: skip
        return self.pair_scorer(pixels, inputs)(rows, columns).reshape(len(images), len(texts))

    def rank(
        self, query: Image.Image | str, candidates: Sequence[Any], *, weighting: str | None = None
    ) -> list[Ranked]:
        """Rank captions for a picture, or pictures for a caption, best first; equal scores keep their order.

        Args:
            query: a picture or a caption.
            candidates: captions or pictures, the other of the two.
            weighting: as in `RetrieverCard`; None for the card's. Under "two-stage" the first `top` have weighted
                scores and the rest come after them with plain ones.

        Raises:
            ImageError, TextError: a picture or a caption can't be used.
            KnobError: another weighting.
        """
        if isinstance(query, str):
            scores = self.directed_scores(list(candidates), [query], weighting=weighting)[1][0]
        else:
            scores = self.directed_scores([query], list(candidates), weighting=weighting)[0][0]
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        return [Ranked(i, float(scores[i])) for i in order]

    def directed_scores(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, weighting: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ([n, m], [m, n]): scores by which each picture ranks the captions, and each caption the pictures.

        Under "two-stage" the two differ, because each query ranks its own best ones again.
        """
        weighting = self.card.weighting if weighting is None else weighting
        if weighting != "two-stage":
            scores = self.score(images, texts, weighting=weighting)  # type: ignore[arg-type]
            return scores, scores.T
        pixels, inputs = self.image_inputs(images), self.text_inputs(texts)
        first = self._encoder.images(pixels) @ self._encoder.texts(inputs).T
        if self.card.strength == 0:
            return first, first.T
        pair = self.pair_scorer(pixels, inputs)
        top = self.card.top
        return again(first, pair, top), again(first.T, lambda text, image: pair(image, text), top)

    def pair_scorer(self, pixels: Tensor, inputs: CaptionInputs) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function from (picture numbers, caption numbers), [p] each, to weighted cosines, [p].

        Each pair's weights come from its own picture and are used for that pair alone, so none tells of another.
        """
        image = self._encoder.images(pixels)
        frozen, _ = self.frozen_features(pixels)

        def pair(rows: Tensor, columns: Tensor) -> Tensor:
            found = []
            for part in torch.arange(len(rows)).split(AT_ONCE):
                i, chosen = rows[part], inputs[columns[part]]
                text = self._encoder.texts(chosen, self.factors(frozen[i], chosen))
                found.append((image[i] * text).sum(-1))
            return torch.cat(found) if found else torch.empty(0)

        return pair

    def factors(self, frozen_image: Tensor, inputs: CaptionInputs) -> Tensor:
        """Return the factors of each caption's embeddings for the picture in the same row, [m, tokens].

        Args:
            frozen_image: [m, d], of `frozen_features`. A batch's own pairs may be weighed so against their own
                captions and those captions' swaps; never use a row's factors with another picture.
            inputs: m captions.
        """
        return scaled(self._weigher.raw(frozen_image, inputs), self.card.strength, inputs.words)

    def word_weights(self, image: Image.Image, text: str) -> list[WordWeight]:
        """Return each piece of a caption with its weight for this picture.

        Raises:
            ImageError, TextError: the picture or the caption can't be used.
        """
        inputs = self.text_inputs([text])
        frozen, _ = self.frozen_features(self.image_inputs([image]))
        each, factors = self._weigher.raw(frozen, inputs)[0], self.factors(frozen, inputs)[0]
        return [
            WordWeight(str(self.inputs.tokenizer.decode([token])).strip(), float(weight), float(factor))
            for token, is_word, weight, factor in zip(
                inputs.input_ids[0].tolist(), inputs.words[0], each, factors, strict=True
            )
            if is_word
        ]

    def probability(self, scores: Tensor) -> Tensor:
        """Return the calibrated probability of a match for cosines of any shape.

        Raises:
            UnsupportedCallError: the retriever was not calibrated.
        """
        if self.card.calibration is None:
            raise UnsupportedCallError(
                "This retriever was not calibrated, and raw cosines are no probabilities: train it with a validation "
                "split, or use its scores for ranking alone."
            )
        a, b = self.card.calibration
        return torch.sigmoid(a * scores.float() + b)

    def frozen_features(self, pixels: Tensor | None = None, texts: Sequence[str] | None = None) -> tuple[Any, Any]:
        """Return (image [n, d], text [m, d]) of the untuned CLIP, None for a side not given; for losses, once."""
        image = None if pixels is None else self._encoder.images(pixels, frozen=True)
        text = None if texts is None else self._encoder.texts(self._plain_inputs(texts), frozen=True)
        return image, text

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter as PEFT does, and the card last; return the card's path."""
        from lvlm_guard.adapters.retrieval.folder import save

        return save(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: Any = None,
        inputs: Inputs | None = None,
        device: str | torch.device | None = None,
        trainable: bool = False,
    ) -> DualPromptRetriever:
        """Load a retriever.

        Args:
            folder: as `save_pretrained` wrote it.
            model: the `CLIPModel`, into which the prompts are put, or its folder or hub id; None for the one that the
                card names.
            inputs: of the CLIP; None for those that lie with it.
            device: where it runs; None is the CPU.
            trainable: whether training goes on.

        Raises:
            WeightsError: something can't be had, or the folder is damaged.
            UnsupportedModelError: the CLIP is of other widths than the one it was trained on.
        """
        from lvlm_guard.adapters.retrieval.folder import load

        return load(folder, model, inputs, device, trainable)

    def _plain_inputs(self, texts: Sequence[str]) -> CaptionInputs:
        return caption_inputs(self.inputs.tokenizer, texts, length=self.inputs.context, too_long=self.card.too_long)
