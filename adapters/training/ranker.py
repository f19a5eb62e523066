"""A ranker's training, from its data to its folder: begun or gone on with, the best kept, calibrated, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import EMBEDDED, Inputs
from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.errors import check
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.ranker.card import RankerSettings, fit_absence
from lvlm_guard.adapters.ranker.model import ClipRanker, Tuning, adapted, card_of
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.training import tasks
from lvlm_guard.adapters.training.ranking import RankingTask
from lvlm_guard.adapters.training.recipe import CANDIDATES, Recipe, about, put
from lvlm_guard.adapters.training.trainer import Advance
from lvlm_guard.errors import UnsupportedModelError

Scale = Literal["auto", "raw", "standard"]
Start = Literal["aligned", "random"]
SMALL = 10.0  # the largest value that is learnt as it is

SHARP = 2.0
"""Factor of an aligned start's queries and of its keys, so that attention begins to choose; ours."""


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

    Raises:
        KnobError: another scale or start.
    """

    clip: str = EMBEDDED
    settings: RankerSettings = field(default_factory=RankerSettings)
    trunk: Tuning = "frozen"
    rank: int = 8
    negatives: float = 0.2
    scale: Scale = "auto"
    start: Start = "aligned"

    def __post_init__(self) -> None:
        check(self, choices={"scale": get_args(Scale), "start": get_args(Start)})


@dataclass(frozen=True)
class Pictures:
    """A data set, read once for all trainings on it.

    Args:
        train: to train on.
        lists: of validation, by which candidates are measured.
        seen: tokens of the frozen trunk, or pixels, of the pictures of both.
    """

    train: RankData
    lists: Lists
    seen: Features

    @classmethod
    def read(cls, data: RankData, plan: Plan, *, advance: Advance = lambda _: None) -> Pictures:
        """Read the training and validation parts of a data set; pictures that can't be read go, where it allows that.

        Raises:
            DataError: a picture can't be read and is not to be skipped, or there is too little.
        """
        learnt, held_out = data.parted()
        encode = encoder(build(plan, learnt), plan.trunk)
        seen = Features(list(dict.fromkeys([*learnt.images, *held_out.images])), data.load, encode, advance)
        return cls(learnt.without(seen.bad), Lists.of(held_out.without(seen.bad)), seen)


def encoder(ranker: Ranker, trunk: Tuning) -> Any:
    """Return what the ranker reads of pictures: tokens of a frozen trunk, else pixels."""

    def tokens(images: Sequence[Any]) -> Tensor:
        return ranker.image_tokens(images).cpu().clone()

    return tokens if trunk == "frozen" else ranker.inputs.pixels


def build(plan: Plan, data: RankData) -> Ranker:
    """Return an untrained ranker for the instructions of a data set."""
    model = ClipRanker.from_pretrained(plan.clip, settings=plan.settings)
    if plan.start == "aligned":
        align(model)
    mean_std = scales(data, plan.scale)
    with torch.no_grad():  # the mean at first, instead of many steps to get there
        model.ranker.score.number.bias.fill_(_usual(data, mean_std, plan.negatives))
    common = next(iter(mean_std.values())) if len(set(mean_std.values())) == 1 else (0.0, 1.0)
    others = {asked: scale for asked, scale in mean_std.items() if scale != common}
    told = {"backbone": plan.clip, "instruction": data.template, "scales": others}
    card = card_of(model, **told, y_mean=common[0], y_std=common[1])
    return Ranker(adapted(model, plan.trunk, plan.rank), card, Inputs.of(model.clip))


@torch.no_grad()
def align(model: ClipRanker) -> None:
    """Make queries of image tokens and keys of text tokens alike where CLIP's own features are.

    Ours, not the paper's: from random weights the fusion must first find out which direction of an image token belongs
    to which word, for every object, from pair losses alone. CLIP's own projections say it, for patch tokens too, if
    less well than for the class token. So the ranker's entries and the first queries and keys of its cross-attention
    are made of them; all of it is trained on.

    Raises:
        UnsupportedModelError: the CLIP has no projections of the two sides into one space.
    """
    clip, fusion = model.clip, model.ranker.fusion
    image, text = getattr(clip, "visual_projection", None), getattr(clip, "text_projection", None)
    norm = getattr(clip.vision_model, "post_layernorm", None)
    if image is None or text is None or norm is None or image.weight.shape[1] != model.trunk.image_width:
        raise UnsupportedModelError(
            "A ranker can start aligned on a ViT CLIP alone, whose projections fit its tokens: give --start random."
        )
    width = model.settings.width
    common = _orthogonal(width, image.weight.shape[0])
    with_image = _entered(fusion.in_image, common @ (image.weight * norm.weight))
    with_text = _entered(fusion.in_text, common @ text.weight)
    for layer in fusion.layers:
        turned = SHARP * _orthogonal(width, width)
        attention: Any = layer.cross_attention
        attention.q_proj.weight.copy_(turned @ with_image)
        attention.q_proj.bias.zero_()
        attention.k_proj.weight.copy_(turned @ with_text)


def _entered(entry: nn.Module, projection: Tensor) -> Tensor:
    """Put a projection into an entry; return what is left to do behind it: nothing, or all where it is none."""
    if isinstance(entry, nn.Linear):
        entry.weight.copy_(projection)
        entry.bias.zero_()
        return torch.eye(len(projection))
    return projection


def _orthogonal(rows: int, columns: int) -> Tensor:
    made: Tensor = nn.init.orthogonal_(torch.empty(rows, columns))
    return made


def scales(data: RankData, scale: Scale) -> dict[str, tuple[float, float]]:
    """Return instruction -> (mean, deviation) that its values are learnt in."""
    values = {name: data.values(name)[1] for name in data.objects}
    small = all(v.min() >= 0 and v.max() <= SMALL for v in values.values())
    if scale == "raw" or (scale == "auto" and small):
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
        means.append(((1 - share) * float(others.mean() if len(others) else 0.0) - mean) / std)
    return float(np.mean(means))


def fit(
    plan: Plan, pictures: Pictures, recipe: Recipe, folder: Path, advance: Advance, device: str = "auto", **how: Any
) -> Ranker:
    """Train a ranker and save it in a folder, see `tasks.fit`; `how` as of `tasks.train`."""
    told = about("ranker", plan, recipe, pictures.train, device)
    learn = partial(_learnt, plan, pictures, recipe, advance, device=device, **how)
    return tasks.fit(Ranker, told, recipe, folder, advance, learn)


def _learnt(
    plan: Plan, pictures: Pictures, recipe: Recipe, advance: Advance, place: Path, **how: Any
) -> tuple[Ranker, dict[str, Any], list[dict[str, Any]]]:
    ranker = build(plan, pictures.train)
    task = RankingTask(ranker, pictures.train, pictures.lists, pictures.seen, recipe, plan.negatives)
    measured, history = tasks.train(task, recipe, place, advance, **how)
    if not PartialState().is_main_process:
        return ranker, {}, []
    best = tasks.best_of(task, measured) or measured[0]
    put(task.model, load_file(place / CANDIDATES / f"{best.step}.safetensors"))
    scored, values = task.scored(pictures.lists), pictures.lists.values
    pooled = [np.concatenate([part[name] for name in values]) for part in (scored, values)]
    absent = pooled[1] <= 0
    calibration = fit_absence(*pooled) if absent.any() and not absent.all() else None
    ranker.card = replace(ranker.card, calibration=calibration, mae=best.figures["mae"])
    return ranker, {"kept": best.step, "figures": best.figures}, history
