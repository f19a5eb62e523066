"""Matchers of a run: found where they are said to be before any model is loaded, loaded beside it; and a control."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import KnobError, WeightsError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.matching import REGISTRY, Match, Matcher, load_matcher
from lvlm_guard.matching.loading import held_in
from lvlm_guard.matching.memory import digest
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.weights import weights_digest

DEFAULT = "blip-itm"  # of a method that names no matcher
CELL = 16  # pixels of the map a random cell covers: the patch of every BLIP, so that both maps are equally smooth
Named = Mapping[str, Iterable[str]]  # as `Settings.matchers`: name -> registered names and folders, one a training


def check_matchers(matchers: Named) -> None:
    """Raise `UnknownNameError`, `WeightsError` or `KnobError` where no matcher, another, or one twice is named."""
    known = REGISTRY.names()
    kinds = dict(zip(known, known, strict=True))
    for name, place in _each(matchers):
        kind = place if place in known else held_in(place)
        if kind is None and Path(place).is_dir():
            told = "no matcher: give a seed-N of `lvlm-guard train dual-prompt` or `ranker`, a CLIP or a BLIP."
            raise WeightsError(f"--matcher {name}={place}: the folder holds {told}")
        if kind is None and "/" not in place and name == place:
            REGISTRY.where(place)  # says which names there are
        if kind is None:
            told = f"Give a name ({', '.join(known)}) or a matcher's folder; one from the hub is fetched first."
            raise WeightsError(f"--matcher {name}={place}: there is no folder {place!r}. {told}")
        if kind != kinds.setdefault(name, kind):
            told = f"{place} is a {kind!r} matcher, no {kinds[name]!r}: one name is for trainings of one matcher"
            raise KnobError(f"--matcher {name}={place}: {told}. Give it another name, such as {kind}={place}.")
    folders = {place: Path(place) for _, place in _each(matchers) if Path(place).is_dir()}
    _refuse_twice(matchers, {place: weights_digest([at]) or str(at.resolve()) for place, at in folders.items()})


def load_matchers(places: Iterable[str], matchers: Named, model: Any) -> dict[str, Matcher]:
    """Return the matchers at some places, each loaded once; `matchers` are those that are compared, `model` is guarded.
    Raises `WeightsError` or `UnsupportedModelError` where one can't be had, `KnobError` at the same weights twice."""
    loaded = {place: load_matcher(place, model=model) for place in dict.fromkeys(places)}
    _refuse_twice(matchers, {place: matcher.version for place, matcher in loaded.items()})
    return loaded


def load_usual(decoders: Sequence[Decoder], model: Any) -> Matcher | None:
    """Return the model's own matcher where a decoder takes it; raises as `load_matchers`."""
    alone = any(d.role == "matcher" and not d.matchers for d in decoders)
    asks = [run.assembling for d in decoders for run in d.runs if run]
    takes = alone or any(getattr(method, "matcher", "none") is None for method in asks)
    return load_matcher(None, model=model) if takes else None


def _each(matchers: Named) -> Iterator[tuple[str, str]]:
    return ((name, place) for name, places in matchers.items() for place in places)


def _refuse_twice(matchers: Named, weights: Mapping[str, str]) -> None:
    """Raise `KnobError` where two have the same weights, or are called the same where those are not known."""
    seen: dict[str, str] = {}
    for name, place in _each(matchers):
        told, key = f"{name}={place}", weights.get(place, place)
        if seen.setdefault(key, told) is not told:
            raise KnobError(f"--matcher {told} has the weights of {seen[key]}: it would count twice. Leave one out.")


@dataclass(eq=False)
class RandomMap(Matcher):
    """A matcher whose relevance map is noise, one for each (picture, text, seed); its scores are the real ones. What
    AGLA gains with it is the gain of any second, partly blacked view; the rest is the map's merit."""

    matcher: Matcher
    seed: int = 0

    @property
    def version(self) -> str:
        """Name of the control, its seed, and the matcher whose scores it takes."""
        return f"random-map-{self.seed} of {self.matcher.version}"

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i, and put smooth noise in the place of the map."""
        return [
            replace(match, relevance=self._noise(image, text, match.relevance), note=None, share_on_class=None)
            for match, image, text in zip(self.matcher(images, texts), images, texts, strict=True)
        ]

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        return self.matcher.support(image, claims)

    def forget(self) -> None:
        self.matcher.forget()

    def _noise(self, image: Image.Image, text: str, like: Tensor) -> Tensor:
        key = blake2b(f"{self.seed} {text}".encode(), key=digest(image), digest_size=8).digest()
        cells = max(2, like.shape[-1] // CELL)
        noise = np.random.default_rng(int.from_bytes(key, "big")).random((cells, cells), dtype=np.float32)
        return heat_map(torch.from_numpy(noise)[None], like.shape[-1])[0]
