"""A ranker's training, from its data to its folder: begun or gone on with, the best kept, calibrated, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor

from lvlm_guard.adapters.backbone import EMBEDDED, Inputs
from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.ranker.card import RankerCard, RankerSettings, fit_absence
from lvlm_guard.adapters.ranker.model import ClipRanker, Tuning, adapted, card_of
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.training.ranking import RankingTask, align
from lvlm_guard.adapters.training.recipe import CANDIDATES, TRAINING, Recipe, about, finish, finished, put
from lvlm_guard.adapters.training.trainer import Advance, best_of, train
from lvlm_guard.errors import KnobError

Scale = Literal["auto", "raw", "standard"]
Start = Literal["aligned", "random"]
SMALL = 10.0  # the largest value that is learnt as it is


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Args:
        clip: "embedded", a folder or a hub id.
        settings: sizes of the ranker.
        trunk: "frozen", so that tokens are computed once, or "tuned" by a LoRA in both towers.
        rank: of that LoRA.
        negatives: share of a group without the object.
        scale: "raw" learns values as they are; "standard" with mean 0 and deviation 1 for each instruction; "auto":
            raw where all lie within 0 to 10, as counts do.
        start: "aligned" to CLIP's own projections, or "random" as the paper.
    """

    clip: str = EMBEDDED
    settings: RankerSettings = field(default_factory=RankerSettings)
    trunk: Tuning = "frozen"
    rank: int = 8
    negatives: float = 0.2
    scale: Scale = "auto"
    start: Start = "aligned"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Pictures:
    """A data set, read once for all trainings on it.

    Args:
        train: to train on.
        validation: to measure candidates on.
        lists: of validation.
        seen: tokens of the frozen trunk, or pixels, of the pictures of both.
    """

    train: RankData
    validation: RankData
    lists: Lists
    seen: Features

    @classmethod
    def read(cls, data: RankData, plan: Plan, *, advance: Advance = lambda _: None) -> Pictures:
        """Read the training and validation parts of a data set; pictures that can't be read go, where it allows that.

        Raises:
            DataError: a picture can't be read and is not to be skipped, or there is too little.
        """
        learnt, held_out = data.parted()
        ranker = build(plan, learnt)
        encode = encoder(ranker, plan.trunk)
        seen = Features(list(dict.fromkeys([*learnt.images, *held_out.images])), data.load, encode, advance)
        learnt, held_out = learnt.without(seen.bad), held_out.without(seen.bad)
        return cls(learnt, held_out, Lists.of(held_out), seen)


def encoder(ranker: Ranker, trunk: Tuning) -> Any:
    """Return what the ranker reads of pictures: tokens of a frozen trunk, else pixels."""

    def tokens(images: Sequence[Any]) -> Tensor:
        return ranker.image_tokens(images).cpu().clone()

    return tokens if trunk == "frozen" else ranker.inputs.pixels


def build(plan: Plan, data: RankData) -> Ranker:
    """Return an untrained ranker for the instructions of a data set."""
    model = ClipRanker.from_pretrained(plan.clip, settings=plan.settings)
    if plan.start not in get_args(Start):
        raise KnobError(f"start is {plan.start!r}: give one of {', '.join(get_args(Start))}.")
    if plan.start == "aligned":
        align(model)
    inputs = Inputs.of(model.clip)
    mean_std = scales(data, plan.scale)
    with torch.no_grad():  # the mean at first, instead of many steps to get there
        model.ranker.score.number.bias.fill_(_usual(data, mean_std, plan.negatives))
    common = next(iter(mean_std.values())) if len(set(mean_std.values())) == 1 else (0.0, 1.0)
    card: RankerCard = card_of(
        model,
        backbone=plan.clip,
        instruction=data.template,
        y_mean=common[0],
        y_std=common[1],
        scales={asked: scale for asked, scale in mean_std.items() if scale != common},
    )
    return Ranker(adapted(model, plan.trunk, plan.rank), card, inputs)


def scales(data: RankData, scale: Scale) -> dict[str, tuple[float, float]]:
    """Return instruction -> (mean, deviation) that its values are learnt in.

    Raises:
        KnobError: another scale.
    """
    if scale not in ("auto", "raw", "standard"):
        raise KnobError(f"scale is {scale!r}: give 'auto', 'raw' or 'standard'.")
    values = {name: data.values(name)[1] for name in data.objects}
    if scale == "auto":
        small = all(v.min() >= 0 and v.max() <= SMALL for v in values.values())
        scale = "raw" if small else "standard"
    if scale == "raw":
        return {data.instruction(name): (0.0, 1.0) for name in values}
    return {data.instruction(name): (float(v.mean()), float(v.std()) or 1.0) for name, v in values.items()}


def _usual(data: RankData, mean_std: Mapping[str, tuple[float, float]], negatives: float) -> float:
    """Return the mean value of a group, in the scale that is learnt."""
    means = []
    for name in data.objects:
        values = data.values(name)[1]
        mean, std = mean_std[data.instruction(name)]
        zeros, others = values[values == 0], values[values != 0]
        share = negatives if len(zeros) and len(others) else float(len(zeros) > 0)
        usual = (1 - share) * float(others.mean() if len(others) else 0.0)
        means.append((usual - mean) / std)
    return float(np.mean(means))


def fit(
    plan: Plan,
    pictures: Pictures,
    recipe: Recipe,
    folder: Path,
    advance: Advance,
    *,
    device: str = "auto",
    workers: int = 0,
    report_to: str = "none",
) -> Ranker:
    """Train a ranker and save it in a folder; one that is there already is loaded.

    Raises:
        TrainingError: the folder holds another training, or a loss or gradient is not finite.
        KeyboardInterrupt: after the step in progress was saved.
    """
    place, told = folder / TRAINING, about("ranker", plan.to_dict(), recipe, pictures.train, device)
    state = PartialState()
    with state.main_process_first():
        done = finished(place, told)
    if done:
        advance(recipe.steps)
        return Ranker.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    ranker = build(plan, pictures.train)
    task = RankingTask(ranker, pictures.train, pictures.lists, pictures.seen, recipe, plan.negatives)
    measured, history = train(task, recipe, place, advance, device=device, workers=workers, report_to=report_to)
    if state.is_main_process:
        best = best_of(task, measured) or measured[0]
        put(task.model, load_file(place / CANDIDATES / f"{best.step}.safetensors"))
        scored, values = task.scored(pictures.lists), pictures.lists.values
        pooled = [np.concatenate([part[name] for name in values]) for part in (scored, values)]
        absent = pooled[1] <= 0
        calibration = fit_absence(*pooled) if absent.any() and not absent.all() else None
        ranker.card = replace(ranker.card, calibration=calibration, mae=best.figures["mae"])
        ranker.save_pretrained(folder)
        finish(place, told, {"kept": best.step, "figures": best.figures}, history)
    state.wait_for_everyone()
    return ranker if state.is_main_process else Ranker.from_pretrained(folder)
