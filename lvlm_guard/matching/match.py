"""What a matcher says of a picture and a text, and the local view cut from it.

A matcher from elsewhere subclasses `Matcher` and registers the class under the entry point
`lvlm_guard.matchers`, or is passed as an object: `methods.AGLA(matcher=mine)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.images import squash
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import keep_mask, keep_share
from lvlm_guard.matching.vocabulary import Vocabulary, claim_about

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Frame = Literal["squashed", "original"]

ABSTAIN = 0.5 - 1e-6
"""What `support` gives where a matcher does not know: no vote, and "unsure" to a verifier."""

EDGE = 1e-6
"""Probabilities stay this far from 0 and 1."""


@dataclass(frozen=True, eq=False)
class Match:
    """Which pixels of a picture matter to a text, and how well the two match.

    Args:
        relevance: [h, w] float32 in [0, 1] on the CPU; row and column over the squashed picture.
        score: how well the whole picture matches; AGLA's ratio reads it (`blip-itm`: the ITC cosine, -1 to 1).
        note: what a reader should know: a text cut short, a map that says nothing.
        share_on_class: share of the text's attention that lies on the image's class token, which the map
            drops, 0 to 1; a map that leaves most of it out is little better than chance. None where a
            matcher has no such token.
        share: which share of the pixels stays, where a method says so, above 0 to 1; None for AGLA's rule by the score.
    """

    relevance: Tensor
    score: float
    note: str | None = None
    share_on_class: float | None = None
    share: float | None = None

    @cached_property
    def keep(self) -> Tensor:
        """[h, w] bool: the pixels that stay in the local view."""
        if self.share is not None:
            return keep_share(self.relevance, self.share)
        return keep_mask(self.relevance, self.score)


class Matcher(ABC):
    """Matches pictures with texts. One object serves many threads.

    One that gives probabilities has `support` or `support_pairs`; each falls back on the other.
    """

    side: int | None = None
    """Pixels of the square that every picture is squashed to (`lvlm_guard.images.squash`) before anything else is done
    with it, so that a squashed one matches the same; None: not so."""

    temperature: float = 0.01
    """Of a softmax over similarities: what a difference of 1 in `similarity` is worth, one over nats."""

    template: str | None = None
    """The sentence about an object that this matcher knows best, with {article} and {object}; None: a question."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Name of the weights and settings; equal versions give equal matches, so caches may key on it."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i; raises `TextError` where one is empty.

        Args:
            images: RGB pictures of any size; the same picture may come with several texts.
            texts: one for each image, as the user asked them.
        """

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return the probability that each claim holds in the picture, [n] float32 in (0, 1).

        Raises `UnsupportedCallError` where this matcher gives maps only.
        """
        if type(self).support_pairs is Matcher.support_pairs:
            raise self._gives_maps_only()
        return self.support_pairs([image] * len(claims), claims)

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n]; matchers that can, batch it."""
        each = [self.support(image, [claim]) for image, claim in zip(images, claims, strict=True)]
        return torch.cat(each) if each else torch.empty(0)

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where this matcher gives maps only."""
        if type(self).support is Matcher.support and type(self).support_pairs is Matcher.support_pairs:
            raise self._gives_maps_only()

    def _gives_maps_only(self) -> UnsupportedCallError:
        return UnsupportedCallError(
            f"The matcher {self.version!r} gives relevance maps but no probabilities, which `vote` needs. Use one "
            "that has `support(image, claims)`, such as the default `blip-itm`."
        )

    def knows(self, claims: Sequence[str]) -> list[bool]:
        """Return on which claims it has an opinion; on the others `support` gives `ABSTAIN`.

        `vote` then gives no vote, AGLA and `focus` keep the whole picture, `dlc` counts the claim as neither better nor
        worse, `marine` does not list its object, and a verifier says "unsure".
        """
        return [True] * len(claims)

    def objects(self, image: Image.Image, at: float = 0.5, among: Vocabulary | None = None) -> list[str]:
        """Return the objects of a vocabulary that a picture holds with a probability of `at` or more, by name.

        Args:
            image: RGB.
            at: above 0 to 1; what the matcher abstains on is never returned.
            among: None for COCO's categories.

        Raises as `support`.
        """
        claims = {claim_about(name): name for name in (among or Vocabulary.of(None)).names}
        known = [claim for claim, knows in zip(claims, self.knows(list(claims)), strict=True) if knows]
        p = self.support(image, known).tolist() if known else []
        return [claims[claim] for claim, held in zip(known, p, strict=True) if held >= at]

    @property
    def compares(self) -> bool:
        """Whether it has `similarity`."""
        return type(self).similarity is not Matcher.similarity

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return how similar each picture is to each text, [N, M] float32, comparable within a row.

        Raises `UnsupportedCallError` where this matcher answers about one picture and one text at a time.
        """
        raise UnsupportedCallError(
            f"The matcher {self.version!r} does not compare texts by similarity. Use one that does, such as "
            "`dual-prompt` or `clip`, or its `support`."
        )

    def mapped(self, how: str) -> Matcher:
        """Return this matcher with another map, "text" or "saliency"; raises `UnsupportedCallError` without one."""
        raise UnsupportedCallError(
            f"The matcher {self.version!r} has no map {how!r}: 'text' and 'saliency' are CLIPs'."
        )

    def expect(self, pictures: int) -> None:
        """Make room for what is computed of so many pictures: those of one call, so that it encodes each once."""
        return  # nothing, where nothing is remembered

    def forget(self) -> None:
        """Drop what is remembered of earlier pictures; needed only where each call's own cost is measured."""
        return  # nothing, where nothing is remembered

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Make the matcher that a registered name stands for; `model` is the model it will guard, if known."""
        return cls()


class Remembering(Matcher):
    """A matcher with a model, which matches each distinct pair of picture and text once."""

    at_once = 16
    """Pairs in one pass with gradients."""

    def __init__(self, model: Any, version: str) -> None:
        self.model, self._version = model, version
        self._matches: Recent[Any, Match] = Recent(64 << 20)  # bytes
        self._seen: Recent[Any, Any]
        """Of pictures, beside their matches."""

    @property
    def version(self) -> str:
        """Name, and a digest of what tells weights and settings."""
        return self._version

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        there: torch.device = self.model.device
        return there

    def forget(self) -> None:
        """Drop the matches and what else is remembered of pictures."""
        self._matches.clear()
        self._seen.clear()

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """See `Matcher`; raises `LogitsError` where a map holds NaN."""
        asked = [(digest(image), self._asked(text)) for image, text in zip(images, texts, strict=True)]
        pictures = dict(zip(asked, images, strict=True))

        def made(missing: list[Any]) -> Iterator[Match]:
            for start in range(0, len(missing), self.at_once):
                chunk = missing[start : start + self.at_once]
                yield from self._match([pictures[pair] for pair in chunk], *zip(*chunk, strict=True))

        with self._alone():
            found = self._matches.filled(pictures, made, lambda match: match.relevance.nbytes)
        return [found[pair] for pair in asked]

    @abstractmethod
    def _asked(self, text: str) -> Any:
        """Return what a text asks for, as the model reads it; raises `TextError` where it is empty."""

    @abstractmethod
    def _match(self, images: Sequence[Image.Image], keys: Sequence[bytes], asked: Any) -> list[Match]:
        """Match pictures, by the keys of their contents, with what was asked."""

    def _alone(self) -> AbstractContextManager[None]:
        """Shut out what the caller set for his own model."""
        return unaffected(self.device)


@contextmanager
def unaffected(device: torch.device) -> Iterator[None]:
    """Shut out what a caller set for his own model: inference mode, gradients, autocast."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def device_of(model: PreTrainedModel | None) -> torch.device:
    """Return where the matcher of a model runs: where the model's first weights are, else the CPU."""
    device = torch.device("cpu") if model is None else torch.device(model.device)
    return torch.device("cpu") if device.type == "meta" else device  # weights that accelerate moves in when needed


def local_view(image: Image.Image, match: Match, frame: Frame = "squashed") -> Image.Image:
    """Paint black what does not matter to the text: `painted` with the match's mask."""
    return painted(image, match.keep.cpu().numpy(), frame)


def painted(image: Image.Image, keep: NDArray[np.bool_], frame: Frame = "squashed") -> Image.Image:
    """Paint black what a mask does not keep.

    Args:
        image: the picture that was matched.
        keep: its mask, [h, w].
        frame: "squashed" gives a picture of the mask's size (384 x 384 for BLIP), as AGLA's release does; "original"
            keeps the picture's own size and shape and enlarges the mask to it, nearest pixel; else raises `KnobError`.

    Returns an RGB picture.
    """
    if frame not in ("squashed", "original"):
        raise KnobError(f"frame is {frame!r}: give 'squashed' (the matcher's square) or 'original' (its shape).")
    height, width = keep.shape
    if frame == "squashed":
        base = squash(image, width, height)
    else:
        base = squash(image, *image.size)
        keep = np.asarray(Image.fromarray(keep).resize(base.size, Image.Resampling.NEAREST), dtype=bool)
    return Image.fromarray(np.asarray(base) * keep[..., None])
