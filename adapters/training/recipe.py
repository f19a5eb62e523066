"""What decides a training besides its data, what the trainer asks of a thing to train, and what it leaves on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.errors import TrainingError, check
from lvlm_guard.errors import KnobError
from lvlm_guard.files import whole

Figures = Mapping[str, float]
"""What a measurement found, by name."""


class Batches(Protocol):
    """Batches by number; picklable, so that worker processes can make them, however they are started."""

    shares: bool
    """Whether processes make each batch together, each its share; else each makes batches of its own."""

    def batch(self, number: int, share: int = 0, of: int = 1) -> Any:
        """Return batch `number`, which depends on the number and the seed alone.

        Args:
            number: of the batch.
            share: which pictures of it this process reads, every `of`-th from this one, where they are shared.
            of: processes.
        """


class Task(Protocol):
    """Batches, a loss, and a measure."""

    @property
    def batches(self) -> Batches:
        """What makes its batches."""

    keeps_all: bool
    """Whether the weights of every measurement are wanted at the end, or those of the best alone."""

    @property
    def model(self) -> nn.Module:
        """What learns."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and what it is made of.

        Args:
            model: `self.model`, wrapped for distributed training where it is; call it once.
            batch: of `batches`.
        """

    def measure(self) -> Figures:
        """Return figures on validation."""

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether a measurement is chosen over the best so far."""


Optimizer = Literal["adamw", "sgd"]
Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and how often is looked.

    Args:
        steps: of the optimiser.
        batch: pairs of a step over all processes, or pictures of a group.
        accumulate: batches whose mean gradient makes a step. Groups are spread over the processes, so that there are
            at least as many.
        rate: peak learning rate; it rises linearly over `warm` of the steps and falls by a cosine to 0.
        warm: share of the steps.
        optimizer: "adamw", or "sgd" with momentum .9 (MaPLe's and CoPrompt's, rate .0035).
        decay: weight decay, of matrices alone.
        clip: bound of the gradient's norm.
        seed: of the first weights and of what is drawn.
        measure_every: steps between measurements on validation, each of which makes a candidate.
        patience: measurements without a better one after which training ends; 0 for to the end.
        save_every: steps between saved states; a measurement is followed by one too.
        precision: of the model's matrices: "auto" is bfloat16 where a GPU has it, else float32.

    Raises:
        KnobError: a value outside its range.
    """

    steps: int
    batch: int
    rate: float
    accumulate: int = 1
    warm: float = 0.05
    optimizer: Optimizer = "adamw"
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    measure_every: int = 50
    patience: int = 0
    save_every: int = 50
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 2, "accumulate": 1, "measure_every": 1, "patience": 0, "save_every": 1}
        check(self, least, {"optimizer": get_args(Optimizer), "precision": get_args(Precision)})
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise KnobError(f"{name} is {getattr(self, name)}: give a finite number above 0.")
        if not 0 <= self.warm < 1 or not 0 <= self.decay < math.inf:
            raise KnobError(f"warm is {self.warm} and decay {self.decay}: give a share below 1, and 0 or more.")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, round(self.warm * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


TRAINING = "training"
"""The folder of a training, below its adapter's."""

BEGUN, DONE, CURVE, CANDIDATES = "begun.json", "training.json", "curve.jsonl", "candidates"


def adapter_folders(out: Path, seeds: Sequence[int]) -> tuple[Path, ...]:
    """Return where the adapters lie: in the folder itself, or in one below it for each of several seeds."""
    return (out,) if len(seeds) == 1 else tuple(out / f"seed-{seed}" for seed in seeds)


def about(what: str, plan: Any, recipe: Recipe, data: Any, device: str) -> dict[str, Any]:
    """Return what tells a training from another: what, how, on which data, in how many processes."""
    from accelerate import PartialState

    return {
        "what": what,
        "plan": asdict(plan),
        "recipe": asdict(recipe),
        "data": {"data": data.name, "digest": data.digest},
        "processes": PartialState(cpu=device == "cpu").num_processes,
    }


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what learns, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what learns, on the CPU."""
    return {name: parameter.detach().cpu().clone().contiguous() for name, parameter in learning(model).items()}


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model the weights of `weights_of`; raises `TrainingError` where they are another model's."""
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
            f"{folder} holds another training ({differing(begun, told)}). Give another --out, or --start-over to drop "
            "it (of a distillation --retrain, which keeps the answers)."
        )
    if done is None:
        write_json(folder / BEGUN, told)
    return done is not None


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in what two notes differ, within 400 characters; "" in nothing."""

    def flat(told: Mapping[str, Any]) -> dict[str, Any]:
        parts = [part if isinstance(part, dict) else {name: part} for name, part in told.items()]
        return {key: value for part in parts for key, value in part.items()}

    old, new = flat(before), flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)!r}, now {new.get(name)!r}" for name in names)[:400]


def finish(
    folder: Path, told: Mapping[str, Any], note: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> None:
    """Note that a training is over and what it found, and drop what only served to go on; its history stays."""
    # an epoch here is of a data set that is cut to the steps, and says nothing
    lines = [{key: value for key, value in entry.items() if key != "epoch"} for entry in history]
    with whole(folder / CURVE) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(folder / DONE, {**told, **note})
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
