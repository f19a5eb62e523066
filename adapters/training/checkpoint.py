"""What a training leaves on disk, so that it goes on where it stopped and is never taken for another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.files import whole

TRAINING = "training"
"""The folder of a training, below its adapter's."""

BEGUN, DONE, CURVE, CANDIDATES = "begun.json", "training.json", "curve.jsonl", "candidates"


@dataclass(frozen=True)
class Measured:
    """A measurement: after how many steps, and what it found."""

    step: int
    figures: dict[str, float]


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what learns, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what learns, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in learning(model).items()}


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model the weights of `weights_of`.

    Raises:
        TrainingError: they are another model's.
    """
    there = learning(model)
    if set(there) != set(weights) or any(there[name].shape != weights[name].shape for name in there):
        raise TrainingError(
            "The saved state has other weights than the model that is trained: it is of another configuration or "
            "release. Give another --out, or --start-over."
        )
    for name, parameter in there.items():
        parameter.copy_(weights[name])


def finished(folder: Path, told: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds the result of this training, and note that it begins where it doesn't.

    Args:
        folder: of the training.
        told: what it is: recipe, data, processes.

    Raises:
        TrainingError: the folder holds another training, finished or not.
    """
    told = json.loads(json.dumps(dict(told), default=str))
    done = read_json(folder / DONE)
    begun = read_json(folder / BEGUN) if done is None else {key: done.get(key) for key in told}
    if begun is not None and begun != told:
        raise TrainingError(
            f"{folder} holds another training ({_differing(begun, told)}). Give another --out, or --start-over to drop "
            "it (of a distillation --retrain, which keeps the answers)."
        )
    if done is None:
        write_json(folder / BEGUN, told)
    return done is not None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (
        {
            key: value
            for name, part in told.items()
            for key, value in (part if isinstance(part, dict) else {name: part}).items()
        }
        for told in (before, now)
    )
    return ", ".join(f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k))[
        :400
    ]


def finish(
    folder: Path, told: Mapping[str, Any], note: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> None:
    """Note that a training is over and what it found, and drop what only served to go on; its history stays."""
    with whole(folder / CURVE) as part:
        part.write_text("".join(json.dumps(_without_epoch(entry)) + "\n" for entry in history), encoding="utf-8")
    write_json(folder / DONE, {**told, **note})
    drop(folder)


def _without_epoch(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "epoch"}  # of a data set that is cut to the steps


def drop(folder: Path) -> None:
    """Remove the checkpoints of a training."""
    for place in (*folder.glob("checkpoint-*"), folder / CANDIDATES):
        shutil.rmtree(place, ignore_errors=True)
    (folder / BEGUN).unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole: its state is written last."""
    found = [path for path in folder.glob("checkpoint-*") if read_json(path / "trainer_state.json") is not None]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def read_json(path: Path) -> Any:
    """Return what a file holds; None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, its folder made if need be."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
