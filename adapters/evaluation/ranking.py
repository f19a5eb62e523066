"""Ranking: lists of pictures under one instruction each, and a trained ranker beside zero-shot CLIP and a probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.data.dataset import COUNTS
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.adapters.evaluation.metrics import Picked, RankingFigures, mean_figures, ranking_figures, table
from lvlm_guard.matching.vocabulary import article, plural
from lvlm_guard.verify.check import drawn

LEAST = 8  # pictures of an object, below which a correlation is luck
ZEROS = 0.2  # share of pictures without the object, as in the groups that are trained on

Values = NDArray[np.float64]
Scored = Mapping[str, Values]
"""Object -> a number for each picture of its list."""


@dataclass(frozen=True)
class Lists:
    """Lists of pictures by what they are ordered by: object -> pictures, their values, and what the ranker is asked."""

    keys: Mapping[str, tuple[str, ...]]
    values: Scored
    instructions: Mapping[str, str]

    @classmethod
    def of(cls, data: RankData, *, least: int = LEAST, zeros: float = ZEROS) -> Lists:
        """Return the lists of a data set; where most pictures hold none of an object, only some of those are taken.

        Raises `DataError` where no object has enough pictures of unequal value.

        Args:
            least: pictures with a value other than 0 that an object must have.
            zeros: most of a list may be pictures of value 0.
        """
        keys: dict[str, tuple[str, ...]] = {}
        values: dict[str, Values] = {}
        for name in data.objects:
            images, found = data.values(name)
            shown = int(np.count_nonzero(found))
            without = [image for image, value in zip(images, found, strict=True) if value == 0]
            few = {*drawn(name, without, round(shown * zeros / (1 - zeros)))}
            chosen = [k for k, image in enumerate(images) if found[k] != 0 or image in few]
            if shown >= least and np.ptp(found[chosen]) > 0:
                keys[name] = tuple(images[k] for k in chosen)
                values[name] = found[chosen]
        if not keys:
            raise DataError(
                f"{data.name}: no object has {least} pictures of unequal value, so nothing can be measured. Give more "
                "pictures of each."
            )
        return cls(keys, values, {name: data.instruction(name) for name in keys})

    @property
    def images(self) -> list[str]:
        """All pictures, each once."""
        return list(dict.fromkeys(key for keys in self.keys.values() for key in keys))

    def scored(self, score: Callable[[str, Sequence[str]], Values]) -> dict[str, Values]:
        """Return a number for each picture of each list, from (object, pictures) -> numbers."""
        return {name: np.asarray(score(name, keys), np.float64) for name, keys in self.keys.items()}

    def figures(self, scored: Scored, picked: Mapping[str, Picked] | None = None) -> RankingFigures:
        """Return the mean figures of all lists, or of some pictures of them, repeated or not."""
        each = {}
        for name, values in self.values.items():
            at = slice(None) if picked is None else picked[name]
            if len(values[at]):
                each[name] = ranking_figures(scored[name][at], values[at])
        return mean_figures(each)

    def picked(self, times: Mapping[str, int]) -> dict[str, Picked]:
        """Return the places in each list of pictures that were drawn so many times."""
        return {
            name: np.repeat(np.arange(len(keys)), [times.get(key, 0) for key in keys])
            for name, keys in self.keys.items()
        }


METRICS = ("srcc", "plcc", "mae", "accuracy", "pair_accuracy", "absence_auroc")
HEADLINES = ("srcc", "accuracy", "mae")

DRAWS = 200
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridge penalties that a linear probe may take, per picture."""

Encode = Callable[[Sequence[str]], Tensor]


def zero_shot(lists: Lists, train: Lists, image: Encode, text: Encode, tau: float) -> Scored:
    """Return what CLIP says untrained.

    Counts: the mean of the numbers 0 to 6 (or the most in the data), by the softmax over "a photo of no dogs",
    "a photo of a dog", "a photo of two dogs" ... Other values: the cosine with the instruction, set on the training
    pictures' scale by a straight line, which changes no order.

    Args:
        lists, train: to score; for the scale.
        image, text: normalised features of pictures by key, and of texts.
        tau: CLIP's temperature.
    """
    counts = all(asked == COUNTS.format(object=name) for name, asked in lists.instructions.items())
    most = int(max(values.max() for values in train.values.values())) if counts else 0
    counts = counts and most < len(NUMBERS)

    def score(name: str, keys: Sequence[str]) -> Values:
        seen = image(keys)
        if counts:
            weights = torch.softmax(seen @ text([counted(name, n) for n in range(most + 1)]).T / tau, -1)
            return _array(weights @ torch.arange(most + 1.0))
        said = text([lists.instructions[name]])[0]
        own = _array(seen @ said)
        if name not in train.keys:
            return own
        slope, offset = np.polyfit(_array(image(train.keys[name]) @ said), train.values[name], 1)
        return np.asarray(abs(slope) * own + offset + (slope - abs(slope)) * float(own.mean()), np.float64)

    return lists.scored(score)


def counted(name: str, n: int) -> str:
    """Return a caption that says how many there are."""
    return f"a photo of {article(name)} {name}" if n == 1 else f"a photo of {NUMBERS[n]} {plural(name)}"


def linear_probe(lists: Lists, train: Lists, validation: Lists, features: Encode) -> Scored:
    """Return what ridge regression on frozen features [n, d] says, one for each object; the mean of all for others.

    Given are the lists to score, those to fit, and those that choose the penalty.
    """
    overall = float(np.mean(np.concatenate(list(train.values.values()))))
    seen = {name: _array(features(keys)) for name, keys in train.keys.items()}

    def scored(of: Lists, strength: float) -> Scored:
        def score(name: str, keys: Sequence[str]) -> Values:
            if name not in seen:
                return np.full(len(keys), overall)
            x, y = seen[name], train.values[name]
            mean, std = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
            z = (x - mean) / std
            weights = np.linalg.solve(z.T @ z + strength * len(y) * np.eye(z.shape[1]), z.T @ (y - y.mean()))
            return np.asarray((_array(features(keys)) - mean) / std @ weights + y.mean(), np.float64)

        return of.scored(score)

    def srcc(strength: float) -> float:
        return float(np.nan_to_num(validation.figures(scored(validation, strength)).srcc, nan=-np.inf))

    return scored(lists, max(STRENGTHS, key=srcc))


def rows_of(
    model: str, ours: str, lists: Lists, found: Mapping[str, Sequence[Scored]], *, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """Return rows in long form, see `metrics.table`; `found` are the scores of each training of a method."""
    images = lists.images

    def measure(scored: Scored, pictures: Picked) -> dict[str, float]:
        picked = lists.picked(Counter(images[k] for k in pictures.tolist()))
        made = lists.figures(scored, picked)._asdict()
        return {metric: made[metric] for metric in METRICS}

    return table(model, ours, "ranking", found, measure, len(images), headlines=HEADLINES, draws=draws)


def by_object(lists: Lists, found: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Return object -> SRCC, MAE and accuracy, mean over trainings, and how many pictures there are."""
    told = {}
    for name, values in lists.values.items():
        each = [ranking_figures(one[name], values) for one in found]
        means = {
            metric: float(np.mean([getattr(one, metric) for one in each])) for metric in ("srcc", "mae", "accuracy")
        }
        told[name] = means | {"n": float(len(values))}
    return told


def _array(tensor: Tensor) -> Values:
    return tensor.detach().cpu().numpy().astype(np.float64)
