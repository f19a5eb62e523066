"""What decides a training besides its data, how a command asks for one, and what it leaves on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from typer import Option

import lvlm_guard
from lvlm_guard.adapters.errors import TrainingError, check
from lvlm_guard.cli import console
from lvlm_guard.errors import KnobError
from lvlm_guard.files import differing, plain, read_json, whole, write_json
from lvlm_guard.progress import progress as bar

if TYPE_CHECKING:
    from accelerate import PartialState

Advance = Callable[[int], object]  # told how many steps, or pictures, were done
Progress = Callable[[str, int], AbstractContextManager[Advance]]  # opens a progress bar: (what, total)
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and how often is looked; raises `KnobError` where a value is outside its range."""

    steps: int  # of the optimiser
    batch: int  # pairs of a step over all processes, or pictures of a group
    rate: float  # at its peak: it rises linearly over the share `warm` of the steps and falls by a cosine to 0
    accumulate: Annotated[int, Option(min=1, help="Batches of one step, over all processes.")] = 1
    warm: float = 0.05
    optimizer: Optimizer = "adamw"  # "sgd" has momentum .9 (MaPLe's and CoPrompt's, rate .0035)
    decay: float = 0.01  # of matrices alone
    clip: float = 1.0  # bound of the gradient's norm
    seed: int = 0  # of the first weights and of what is drawn
    measure_every: int = 50  # steps between measurements on validation, each of which makes a candidate
    patience: Annotated[int, Option(min=0, help="Measurements without a better one that end training; 0: none.")] = 0
    save_every: Annotated[int, Option(min=1, help="Steps between saved states.")] = 50
    precision: Annotated[Precision, Option(help="auto: bfloat16 where a GPU has it.")] = "auto"

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


TRAINING = "training"  # the folder of a training, below its adapter's
BEGUN, DONE, CURVE, CANDIDATES = "begun.json", "training.json", "curve.jsonl", "candidates"


@dataclass(frozen=True)
class Call:
    """How a command asks for trainings.

    Args:
        out, seeds: folder, where the same call goes on; of trainings, an adapter each.
        device: "cpu", or "auto".
        start_over: drop what an earlier call left in the folder.
        echo, progress: told what happens, a line at a time; opens a progress bar.
        line, environment: the command as it was typed, and where it runs.
        compare, pictures: whether all are measured on the test part, beside baselines; and on how many of it at most.
        workers, report_to: processes that read pictures, and trackers that are told, as `transformers` names them.

    Raises:
        TrainingError: there is no seed, or one twice.
    """

    out: Path
    seeds: Sequence[int]
    device: str
    start_over: bool
    echo: Callable[[str], object] = console.say
    progress: Progress = bar
    line: str = field(default_factory=console.line)
    environment: Mapping[str, Any] = field(default_factory=console.environment)
    compare: bool = False
    pictures: int | None = None
    workers: int = 0
    report_to: str = "none"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TrainingError(f"seeds are {list(self.seeds)}: give one or more different numbers.")

    def folders(self, below: str = "") -> tuple[Path, ...]:
        """Return where the adapters lie: in the folder itself, or in one below it for each of several seeds."""
        out = self.out / below
        return (out,) if len(self.seeds) == 1 else tuple(out / f"seed-{seed}" for seed in self.seeds)

    @property
    def state(self) -> PartialState:
        """This process among those that train together."""
        return state_of(self.device)

    @property
    def main(self) -> bool:
        """Whether this process tells and measures."""
        return bool(self.state.is_main_process)

    def told(self) -> Call:
        """Return the same, silent in all processes but the main one."""
        if self.main:
            return self
        return replace(self, echo=lambda _: None, progress=lambda *_: nullcontext(lambda _: None))

    def clear(self) -> None:
        """Drop the trainings that an earlier call left in the folder."""
        for depth in ("", "*/", "*/*/", "baselines/*/*/") if self.main else ():
            for place in self.out.glob(f"{depth}{TRAINING}"):
                if any((place / mark).exists() for mark in (BEGUN, DONE)):  # no folder of another's so called
                    shutil.rmtree(place, ignore_errors=True)

    def report(self, command: str, folders: Sequence[Path], recipe: Any, **told: Any) -> dict[str, Any]:
        """Return a report that has no rows yet, as JSON data."""
        report: dict[str, Any] = {"command": f"train {command}", "version": lvlm_guard.__version__, "call": self.line}
        report |= {"environment": self.environment, "recipe": asdict(recipe), "seeds": self.seeds, "adapters": folders}
        made: dict[str, Any] = plain({**report, "rows": [], **told})
        return made


def state_of(device: str) -> PartialState:
    """Return this process among those that train together on a device."""
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def about(what: str, plan: Any, recipe: Recipe, data: Any, device: str) -> dict[str, Any]:
    """Return what tells a training from another: what, how, on which data, in how many processes."""
    return {
        "what": what,
        "plan": asdict(plan),
        "recipe": asdict(recipe),
        "data": {"data": data.name, "digest": data.digest},
        "processes": state_of(device).num_processes,
    }


def begun(folder: Path, told: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds the result of this training, and note that it begins where it doesn't."""
    told = plain(told)
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


Made = TypeVar("Made")
Learnt = tuple[Made, Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""What was made, what is noted of it, and the history."""


def made_once(
    load: Callable[[Path], Made],
    told: Mapping[str, Any],
    steps: int,
    seed: int,
    folder: Path,
    advance: Advance,
    learn: Callable[[Path], Learnt[Made]],
) -> Made:
    """Train an adapter and save it in a folder; one that is there already, by the same notes, is loaded.

    `learn` trains in a folder below, from first weights of the seed; of several processes the main one's result is
    saved. What is `told` tells this training from others, see `about`.

    Raises:
        TrainingError: the folder holds another training, or a loss or gradient is not finite.
        KeyboardInterrupt: after the step in progress was saved.
    """
    import torch
    from accelerate import PartialState

    place, state = folder / TRAINING, PartialState()
    with state.main_process_first():
        done = begun(place, told)
    if done:
        advance(steps)
        return load(folder)
    torch.manual_seed(seed)
    made, note, history = learn(place)
    if state.is_main_process:
        saved: Any = made
        saved.save_pretrained(folder)
        finish(place, told, note, history)
    state.wait_for_everyone()
    return made if state.is_main_process else load(folder)
