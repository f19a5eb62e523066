"""A ranker's training: groups of pictures under one instruction, from their data to the adapter's folder.

The release draws negatives from all rows but the chosen ones, so that pictures which hold the object under another row
are told they hold none, and keeps the group's order in a counter of the data set, which mixes instructions under other
batch sizes or several workers. Here a negative is a picture whose own value for the object is 0, and groups come whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.data import RankData, RankRow
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.evaluation.metrics import better
from lvlm_guard.adapters.evaluation.ranking import Lists, Scored
from lvlm_guard.adapters.ranker.card import fit_absence
from lvlm_guard.adapters.ranker.model import ClipRanker, adapted, card_of
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.ranker.settings import Plan as Plan
from lvlm_guard.adapters.ranker.settings import Scale, Tuning
from lvlm_guard.adapters.training.recipe import CANDIDATES, Advance, Learnt, Recipe, about, made_once
from lvlm_guard.adapters.training.trainer import Figures, best_of, put, train
from lvlm_guard.errors import KnobError, UnsupportedModelError

SMALL = 10.0  # the largest value that is learnt as it is

SHARP = 2.0  # factor of an aligned start's queries and of its keys, so that attention begins to choose; ours


@dataclass(frozen=True)
class Pictures:
    """A data set, read once for all trainings on it: what is trained on, and the lists that candidates are measured by.

    Args:
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


def encoder(ranker: Ranker, trunk: Tuning) -> Callable[[Sequence[Any]], Tensor]:
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
    to which word, from pair losses alone. CLIP's own projections say it, for patch tokens too, if less well than for
    the class token. So the ranker's entries and the first queries and keys of its cross-attention are made of them.

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
    width, orthogonal = model.settings.width, nn.init.orthogonal_
    common = orthogonal(torch.empty(width, image.weight.shape[0]))
    with_image = _entered(fusion.in_image, common @ (image.weight * norm.weight))
    with_text = _entered(fusion.in_text, common @ text.weight)
    for layer in fusion.layers:
        turned = SHARP * orthogonal(torch.empty(width, width))
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


def scales(data: RankData, scale: Scale) -> dict[str, tuple[float, float]]:
    """Return instruction -> (mean, deviation) that its values are learnt in."""
    values = {name: data.values(name)[1] for name in data.objects}
    raw = scale == "raw" or (scale == "auto" and all(v.min() >= 0 and v.max() <= SMALL for v in values.values()))
    return {
        data.instruction(name): (0.0, 1.0) if raw else (float(v.mean()), float(v.std()) or 1.0)
        for name, v in values.items()
    }


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


class Groups:
    """Draws groups. The object is drawn uniformly, then its pictures without replacement, by their weight.

    An object whose pictures all have the same value is left out. A missing row means unknown, but 0 for an `exhaustive`
    object. Of a group of `size`, or fewer where there are fewer, `negatives` is the share without the object, as far as
    there are any. Group n depends on the seed and n alone.

    Raises:
        KnobError: a size or share that is none, a weight that is not above 0, several values of a picture, or no object
            has two pictures of unequal value.
    """

    def __init__(
        self,
        rows: Sequence[RankRow],
        size: int = 64,
        negatives: float = 0.2,
        exhaustive: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if size < 2 or not 0 <= negatives < 1:
            raise KnobError(
                f"A group has {size} pictures, {negatives} of them negatives: give 2 pictures or more, and a share "
                "from 0 to below 1."
            )
        if any(row.weight is not None and not row.weight > 0 for row in rows):
            raise KnobError("A row's weight is not above 0: give a positive one, or leave the row out.")
        self.size, self.negatives, self.seed = size, negatives, seed
        pictures = list(dict.fromkeys(row.image for row in rows))
        about: dict[str, list[RankRow]] = {}
        for row in rows:
            about.setdefault(row.object, []).append(row)
        drawn = {name: _drawn(name, its, pictures if name in exhaustive else []) for name, its in about.items()}
        self._drawn = {
            name: (shown, chance, without)
            for name, (shown, chance, without) in drawn.items()
            if len({one.value for one in shown}) + (bool(without) and negatives > 0) > 1
        }
        self.objects = list(self._drawn)
        if not self.objects:
            raise KnobError(
                "No object has two pictures of unequal value, so there is nothing to order: give more values for each "
                "object, or name it as exhaustive so that pictures without a row count as showing none."
            )
        self.epoch = max(1, -(-sum(len(shown) for shown, _, _ in self._drawn.values()) // size))
        """Groups that cover the rows once."""

    def group(self, number: int) -> list[RankRow]:
        """Return group `number`."""
        rng = np.random.default_rng([self.seed, *divmod(number, self.epoch)])
        shown, chance, without = self._drawn[self.objects[int(rng.integers(len(self.objects)))]]
        none = min(len(without), round(self.size * self.negatives))
        some = min(len(shown), self.size - none)
        members = [shown[int(k)] for k in rng.choice(len(shown), some, replace=False, p=chance)] if some else []
        members += [without[int(k)] for k in rng.choice(len(without), none, replace=False)] if none else []
        return [members[int(k)] for k in rng.permutation(len(members))]


def _drawn(
    name: str, rows: Sequence[RankRow], pictures: Sequence[str]
) -> tuple[list[RankRow], NDArray[np.float64], list[RankRow]]:
    """Return the pictures of an object, how likely each is, and the pictures without it, those without a row too."""
    values = {row.image: row.value for row in rows}
    for row in rows:
        if values[row.image] != row.value:
            raise KnobError(f"{row.image!r} has several values for {name!r}: give one.")
    weights = {row.image: row.weight for row in rows}
    shown = [RankRow(image, name, value) for image, value in values.items() if value]
    often = Counter(member.value for member in shown)
    # a given weight counts alone: the released ones are inverse frequencies already
    chance = np.array([weights[one.image] or 1 / often[one.value] for one in shown], np.float64)
    absent = dict.fromkeys(image for image in (*values, *pictures) if values.get(image, 0) == 0)
    return shown, chance / (chance.sum() or 1.0), [RankRow(image, name, 0.0) for image in absent]


@dataclass(frozen=True)
class Group:
    """Pictures under one instruction, [K, P, width] tokens or [K, 3, side, side] pixels, and their values, [K]."""

    seen: Tensor
    instruction: str
    values: Tensor


class GroupBatches:
    """Makes groups to train on, with tokens or pixels of their pictures; a recipe's `batch` is a group's size."""

    shares = False

    def __init__(self, data: RankData, source: Features, recipe: Recipe, negatives: float = 0.2) -> None:
        self.data, self.source = data, source
        self.groups = Groups(data.rows, recipe.batch, negatives=negatives, exhaustive=data.exhaustive, seed=recipe.seed)

    def batch(self, number: int, share: int = 0, of: int = 1) -> Group:
        """Return group `number`, whole."""
        members = self.groups.group(number)
        values = torch.tensor([member.value for member in members])
        return Group(self.source([m.image for m in members]), self.data.instruction(members[0].object), values)


class RankingTask:
    """Trains a ranker, with the scales of its instructions in its card, by groups without the object in `negatives`."""

    averages = False

    def __init__(self, ranker: Ranker, pictures: Pictures, recipe: Recipe, negatives: float = 0.2) -> None:
        self.ranker, self.model, self.pictures = ranker, ranker.model, pictures
        self.batches = GroupBatches(pictures.train, pictures.seen, recipe, negatives)

    def loss(self, model: nn.Module, batch: Group) -> tuple[Tensor, dict[str, float]]:
        """Return the pairs' loss and the scores' beside it."""
        device = self.model.device
        mean, std = self.ranker.card.scale(batch.instruction)
        words = {name: ids.to(device) for name, ids in self.ranker.inputs.tokens([batch.instruction]).items()}
        given = {"pixel_values" if batch.seen.ndim == 4 else "image_tokens": batch.seen.to(device)}
        out: Any = model(**given, **words, labels=((batch.values - mean) / std).to(device))
        return out.loss, {}

    def measure(self) -> dict[str, float]:
        """Return the mean figures over the validation's lists."""
        lists = self.pictures.lists
        return lists.figures(scored(self.ranker, lists, self.pictures.seen))._asdict()

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether the order is better: by SRCC, ties by MAE."""
        return better(figures, best)


def scored(ranker: Ranker, lists: Lists, seen: Features) -> Scored:
    """Return a ranker's scores of lists, of whose pictures there are tokens of its frozen trunk, else pixels."""
    model: Any = ranker.model

    @torch.inference_mode()
    def score(name: str, keys: Sequence[str]) -> Any:
        tokens = seen(keys)
        if tokens.ndim == 4:
            tokens = torch.cat([model.image_tokens(part.to(model.device)) for part in tokens.split(64)])
        return ranker.rank_tokens(tokens, lists.instructions[name]).scores.numpy()

    return lists.scored(score)


def fit(
    plan: Plan, pictures: Pictures, recipe: Recipe, folder: Path, advance: Advance, device: str = "auto", **how: Any
) -> Ranker:
    """Train a ranker and save it in a folder, see `made_once`; `how` as of `train`. The best is kept."""

    def learn(place: Path) -> Learnt[Ranker]:
        ranker = build(plan, pictures.train)
        task = RankingTask(ranker, pictures, recipe, plan.negatives)
        measured, history = train(task, recipe, place, advance, device=device, **how)
        if not PartialState().is_main_process:
            return ranker, {}, []
        best = best_of(task, measured) or measured[0]
        put(task.model, load_file(place / CANDIDATES / f"{best.step}.safetensors"))
        found, values = scored(ranker, pictures.lists, pictures.seen), pictures.lists.values
        pooled = [np.concatenate([part[name] for name in values]) for part in (found, values)]
        absent = pooled[1] <= 0
        calibration = fit_absence(*pooled) if absent.any() and not absent.all() else None
        ranker.card = replace(ranker.card, calibration=calibration, mae=best.figures["mae"])
        return ranker, {"kept": best.step, "figures": best.figures}, history

    told = about("ranker", plan, recipe, pictures.train, device)
    return made_once(Ranker.from_pretrained, told, recipe.steps, recipe.seed, folder, advance, learn)
