"""Ranking: a trained ranker beside zero-shot CLIP and a linear probe, on pictures that none has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvlm_guard.adapters.data.views import COUNTS
from lvlm_guard.adapters.evaluation.bootstrap import Figure, Picked, interval, less
from lvlm_guard.adapters.evaluation.lists import Lists, Scored, Values
from lvlm_guard.adapters.evaluation.retrieval import row
from lvlm_guard.adapters.ranker.metrics import RankingFigures
from lvlm_guard.matching.vocabulary import article, plural

TASK = "ranking"
METRICS = ("srcc", "plcc", "mae", "accuracy", "pair_accuracy", "absence_auroc")
HEADLINES = ("srcc", "accuracy", "mae")
"""What an adapter must win by; of the last, less is better."""

DRAWS = 200
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridge penalties that a linear probe may take, per picture."""

Texts = Callable[[Sequence[str]], Tensor]


def zero_shot(lists: Lists, train: Lists, image: Callable[[Sequence[str]], Tensor], text: Texts, tau: float) -> Scored:
    """Return what CLIP says untrained.

    Counts: the mean of the numbers 0 to 6 (or the most in the data), by the softmax over "a photo of no dogs",
    "a photo of a dog", "a photo of two dogs" ... Other values: the cosine with the instruction, set on the training
    pictures' scale by a straight line, which changes no order.

    Args:
        lists: to score.
        train: for the scale.
        image: normalised features of pictures by key.
        text: normalised features of texts.
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


def linear_probe(lists: Lists, train: Lists, validation: Lists, features: Callable[[Sequence[str]], Tensor]) -> Scored:
    """Return what ridge regression on frozen features says, one for each object, its penalty chosen on validation.

    Args:
        lists: to score; an object that was not trained on gets the mean of all values.
        train: to fit.
        validation: for the penalty.
        features: of pictures by key, [n, d].
    """
    overall = float(np.mean(np.concatenate(list(train.values.values()))))
    held = {name: _standardised(_array(features(keys))) for name, keys in train.keys.items()}

    def weights(name: str, strength: float) -> tuple[Values, float, Values, Values]:
        x, mean, std = held[name]
        y = train.values[name]
        penalty = strength * len(y) * np.eye(x.shape[1])
        solved: Values = np.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean()))
        return solved, float(y.mean()), mean, std

    def scored(of: Lists, strength: float) -> Scored:
        def score(name: str, keys: Sequence[str]) -> Values:
            if name not in held:
                return np.full(len(keys), overall)
            w, offset, mean, std = weights(name, strength)
            return np.asarray((_array(features(keys)) - mean) / std @ w + offset, np.float64)

        return of.scored(score)

    best = max(STRENGTHS, key=lambda strength: _srcc(validation.figures(scored(validation, strength))))
    return scored(lists, best)


def rows_of(
    model: str, ours: str, lists: Lists, found: Mapping[str, Sequence[Scored]], *, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """Return rows in long form: each figure of each method, and `ours` less each other method.

    Args:
        model: name of the CLIP.
        ours: the method that is compared with all others.
        lists: what was scored.
        found: method -> the scores of each of its trainings, as many for all; an untrained method's is repeated.
        draws: of the bootstrap over pictures and trainings.
    """
    images = lists.images
    n = len(images)
    drawn: dict[bytes, dict[int, RankingFigures]] = {}

    def figures(method: str, training: int, pictures: Picked) -> RankingFigures:
        held = drawn.setdefault(pictures.tobytes(), {})
        key = id(found[method][training])  # an untrained method's scores are the same ones each time
        if key not in held:
            times = Counter(images[int(k)] for k in pictures)
            held[key] = lists.figures(found[method][training], lists.picked(times))
        return held[key]

    def over(method: str, metric: str, trainings: Picked, pictures: Picked) -> float:
        return float(np.mean([getattr(figures(method, int(t), pictures), metric) for t in trainings]))

    rows = []
    trainings = len(found[ours])
    for metric in METRICS:
        each: dict[str, Figure] = {method: partial(over, method, metric) for method in found}
        for method, figure in each.items():
            rows.append(row(model, method, TASK, metric, interval(figure, trainings, n, draws=draws), n))
        for method, figure in each.items():
            if method != ours and metric in HEADLINES:
                ends = interval(less(each[ours], figure), trainings, n, draws=draws)
                rows.append(row(model, f"{ours}-{method}", TASK, metric, ends, n))
    return rows


def by_object(lists: Lists, found: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Return object -> SRCC, MAE and accuracy, mean over trainings, and how many pictures there are."""
    told = {}
    for name, values in lists.values.items():
        alone = Lists({name: lists.keys[name]}, {name: values}, {name: lists.instructions[name]})
        each = [alone.figures(one) for one in found]
        told[name] = {
            metric: float(np.mean([getattr(one, metric) for one in each])) for metric in ("srcc", "mae", "accuracy")
        } | {"n": float(len(values))}
    return told


def _standardised(x: Values) -> tuple[Values, Values, Values]:
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 0, std, 1.0)
    return (x - mean) / std, mean, std


def _srcc(figures: RankingFigures) -> float:
    return -np.inf if np.isnan(figures.srcc) else figures.srcc


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)
