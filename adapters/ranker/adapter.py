"""A ranker as a PEFT adapter: stock LoRA on the CLIP, and the ranker as a module that is saved beside it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lvlm_guard.adapters.backbone import load_backbone
from lvlm_guard.adapters.card import write_adapter
from lvlm_guard.adapters.ranker.card import RankerCard
from lvlm_guard.adapters.ranker.model import ClipRanker
from lvlm_guard.adapters.ranker.trunk import trunk_of
from lvlm_guard.adapters.tuned import require_peft
from lvlm_guard.errors import KnobError, UnsupportedModelError
from lvlm_guard.weights import read

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

Tuning = Literal["frozen", "tuned"]

UNUSED = r"clip\.visual_projection"
"""A layer that the ranker never asks: PEFT needs one to adapt also where nothing of the CLIP shall learn."""

TOWERS = r"clip\.(vision|text)_model\..*\.(q_proj|v_proj|pwconv1|pwconv2)"
"""Queries and values of attention; in a ConvNeXt its blocks' two matrices."""


def lora_config(trunk: Tuning = "frozen", rank: int = 8) -> LoraConfig:
    """Return the configuration of a ranker's adapter.

    Args:
        trunk: "frozen": the CLIP stays as it is, and tokens of pictures may be computed once. "tuned": a LoRA learns
            in both towers.
        rank: of that LoRA.

    Raises:
        KnobError: another trunk, or a rank below 1.
    """
    require_peft()
    from peft import LoraConfig

    if trunk not in get_args(Tuning) or rank < 1:
        raise KnobError(f"trunk is {trunk!r} and rank {rank}: give 'frozen' or 'tuned', and a rank of 1 or more.")
    target, r = (UNUSED, 1) if trunk == "frozen" else (TOWERS, rank)
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=target, modules_to_save=["ranker"])


def adapted(model: ClipRanker, trunk: Tuning = "frozen", rank: int = 8) -> PeftModel:
    """Return a ranker as a PEFT model that is ready to train: what has no gradient asks for none."""
    from peft import get_peft_model

    wrapped = get_peft_model(model, lora_config(trunk, rank))
    _freeze_unused(wrapped)
    return wrapped


def card_of(model: Any, **known: Any) -> RankerCard:
    """Return the card of a ranker, wrapped by PEFT or not.

    Args:
        model: the ranker.
        known: further fields of `RankerCard`.
    """
    trunk = model.trunk
    about = {"backbone": str(model.name_or_path), "image_width": trunk.image_width, "text_width": trunk.text_width}
    return RankerCard(**{**about, "settings": model.settings, **known})


def save(model: PeftModel, card: RankerCard, folder: str | os.PathLike[str]) -> Path:
    """Write PEFT's files and `guard_ranker.json`; the card last, so that a folder with it is whole."""
    write_adapter(model, card.backbone, folder)
    return card.write(folder)


def load(
    folder: str | os.PathLike[str],
    backbone: Any = None,
    *,
    trainable: bool = False,
    revision: str | None = None,
) -> tuple[PeftModel, RankerCard]:
    """Load a ranker on the CLIP that it was trained on.

    Args:
        folder: as `save` wrote it.
        backbone: the CLIP, or its folder or hub id where it lies elsewhere now; None for the one the card names.
        trainable: whether training goes on.
        revision: of a hub id.

    Returns:
        The PEFT model in evaluation mode (training mode where trainable), and the card.

    Raises:
        WeightsError: the folder or the CLIP can't be had.
        UnsupportedModelError: the CLIP's tokens have other widths, or its towers can't be read.
    """
    require_peft()
    from peft import PeftModel

    card = RankerCard.read(folder)
    clip = card.backbone if backbone is None else backbone
    if isinstance(clip, str | os.PathLike):
        clip = load_backbone(clip, revision=revision)
    elif isinstance(clip, ClipRanker):
        raise UnsupportedModelError("The backbone is a ranker already: give the CLIP below it.")
    card.require(trunk_of(clip), str(getattr(clip, "name_or_path", "") or type(clip).__name__))
    model = ClipRanker(clip, card.settings)
    wrapped = read(
        f"The ranker {str(folder)!r}",
        str(folder),
        lambda: PeftModel.from_pretrained(model, str(folder), is_trainable=trainable),
        damaged="The folder is incomplete or damaged: copy or train it again.",
        absent="Give the folder that `lvlm-guard train ranker` wrote.",
    )
    _freeze_unused(wrapped)
    return wrapped.train(trainable), card


def calibrated(card: RankerCard, calibration: tuple[float, float], mae: float) -> RankerCard:
    """Return the card with what validation told: (a, b) of `fit_absence`, and the mean absolute error."""
    return replace(card, calibration=calibration, mae=mae)


def _freeze_unused(model: Any) -> None:
    """Ask no gradient for the placeholder: distributed training waits for every gradient that is asked for."""
    for name, weight in model.named_parameters():
        if ".visual_projection.lora_" in name:
            weight.requires_grad_(False)
