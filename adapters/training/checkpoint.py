"""What a training leaves on disk, so that it goes on where it stopped and is never taken for another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lvlm_guard.adapters.distill.state import read_json, write_json
from lvlm_guard.adapters.training.errors import TrainingError
from lvlm_guard.files import whole

STATE, BEGUN, DONE, CURVE, CANDIDATES = "state.pt", "begun.json", "training.json", "curve.jsonl", "candidates"


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


class Checkpoint:
    """The state of one training, in a folder below the adapter's.

    Args:
        folder: made if need be.
        told: what the training is; a folder that holds another is refused.

    Raises:
        TrainingError: the folder holds another training.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        self.folder, self.told = folder, json.loads(json.dumps(dict(told), default=str))
        begun = read_json(folder / BEGUN)
        if begun is not None and begun != self.told:
            changed = [
                f"{key} {begun.get(key)!r}, now {value!r}"
                for key, value in self.told.items()
                if begun.get(key) != value
            ]
            raise TrainingError(
                f"{folder} holds another training ({'; '.join(changed)[:400]}). Give another --out, or --start-over "
                "to drop it."
            )

    def begin(self) -> None:
        """Note what the training is."""
        (self.folder / CANDIDATES).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / BEGUN, self.told)

    @property
    def done(self) -> bool:
        """Whether the training has come to its end."""
        return read_json(self.folder / DONE) is not None

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, measured: list[Measured]) -> None:
        """Write the state after a step, whole or not at all."""
        state = {
            "step": step,
            "weights": weights_of(model),
            "optimizer": optimizer.state_dict(),
            "measured": [asdict(one) for one in measured],
        }
        with whole(self.folder / STATE) as part:
            torch.save(state, part)

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[Measured]]:
        """Give model and optimiser the saved state; return (steps done, measurements), (0, []) where there is none."""
        place = self.folder / STATE
        if not place.is_file():
            return 0, []
        state = torch.load(place, map_location="cpu", weights_only=True)
        put(model, state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), [Measured(**one) for one in state["measured"]]

    def candidate(self, step: int) -> dict[str, Tensor]:
        """Return the weights that were measured after a step."""
        return load_file(self.folder / CANDIDATES / f"{step}.safetensors")

    def keep_candidate(self, step: int, model: nn.Module, alone: bool) -> None:
        """Write the weights that were measured; `alone` drops the others."""
        place = self.folder / CANDIDATES
        with whole(place / f"{step}.safetensors") as part:
            save_file({name: value.contiguous() for name, value in weights_of(model).items()}, part)
        if alone:
            for other in place.glob("*.safetensors"):
                if other.stem != str(step):
                    other.unlink()

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append a line to the curve."""
        with (self.folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def curve(self) -> list[dict[str, Any]]:
        """Return the lines of the curve; one that was cut off by a kill is left out."""
        place = self.folder / CURVE
        found = []
        for line in place.read_text(encoding="utf-8").splitlines() if place.is_file() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Drop what the curve tells of later steps than the saved one: they are taken again."""
        kept = [entry for entry in self.curve() if entry["step"] <= step]
        with whole(self.folder / CURVE) as part:
            part.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def finish(self, note: Mapping[str, Any]) -> None:
        """Note that the training is over and what it found, and drop what only served to go on; the curve stays."""
        write_json(self.folder / DONE, {**self.told, **note})
        (self.folder / STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder / CANDIDATES, ignore_errors=True)
