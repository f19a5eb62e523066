"""A task trained, from nothing or from where it stopped, and measured on the way; and an adapter saved in its folder.

Batch n depends on the seed and n alone and every step seeds what it draws, so a training that was killed ends in the
weights of one that was not. On several processes a batch is either made by all of them together, or each makes batches
of its own; both ways a pass over the data is as many batches as on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from lvlm_guard.adapters.training.recipe import CANDIDATES, TRAINING, Advance, Recipe, begun, finish, last_checkpoint
from lvlm_guard.adapters.training.trainer import WEIGHTS, ResumableTrainer, arguments, learning, put, weights_of
from lvlm_guard.files import whole

VALIDATION = "val_"  # what names of measured figures begin with in the history
Figures = Mapping[str, float]  # what a measurement found, by name

Made = TypeVar("Made")
Learnt = tuple[Made, Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""What was made, what is noted of it, and the history."""


def fit(
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


class Batches(Protocol):
    """Batches by number; picklable, so that worker processes can make them, however they are started.

    Where it `shares`, processes make each batch together; else each makes batches of its own.
    """

    shares: bool

    def batch(self, number: int, share: int = 0, of: int = 1) -> Any:
        """Return batch `number`, with the pictures of one of `of` processes: every `of`-th from `share` on."""


class Task(Protocol):
    """What is trained by a recipe: a model, batches, a loss, and a measure; whether all it measured is kept."""

    averages: bool

    @property
    def model(self) -> nn.Module: ...

    @property
    def batches(self) -> Batches: ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and what it is made of; `model`, maybe wrapped, is to be called once."""

    def measure(self) -> Figures:
        """Return figures on validation."""

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether a measurement is chosen over the best so far."""


class Measured(NamedTuple):
    """A measurement: after how many steps, and what it found."""

    step: int
    figures: dict[str, float]


class Numbered(Dataset[Any]):
    """Batches of a task by their number: `count` for each of `world` processes."""

    def __init__(self, batches: Batches, count: int, world: int) -> None:
        self.batches, self.count, self.world = batches, count, world

    def __len__(self) -> int:
        return self.count * self.world

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, share = divmod(index, self.world) if self.batches.shares else (index, 0)
        return {"number": number, "batch": self.batches.batch(number, share, self.world)}


class TaskTrainer(ResumableTrainer):
    """The trainer of a task, which it moves to the device, "cpu" or "auto"; its states lie in the folder.

    Further arguments are those of `transformers.TrainingArguments`.
    """

    def __init__(
        self, task: Task, recipe: Recipe, folder: Path, advance: Advance, device: str = "auto", **given: Any
    ) -> None:
        own = {
            "max_steps": recipe.steps,
            "learning_rate": recipe.rate,
            "seed": recipe.seed,
            "save_steps": recipe.save_every,
        }
        args = arguments(folder, use_cpu=device == "cpu", **own, **given)
        micro = recipe.accumulate if task.batches.shares else -(-recipe.accumulate // args.world_size)
        args.gradient_accumulation_steps = micro
        dataset = Numbered(task.batches, recipe.steps * micro, args.world_size)
        self.task, self.recipe, self.candidates = task, recipe, folder / CANDIDATES
        super().__init__(task.model, args, dataset, itemgetter(0), self._loss, recipe.clip, advance)
        auto = self.args.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.half = auto if recipe.precision == "auto" else recipe.precision == "bfloat16"

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """Return AdamW or SGD, without decay of what is no matrix."""
        recipe, parameters = self.recipe, list(learning(self.learner).values())
        matrices, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        both = ({"params": matrices, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0})
        groups = [group for group in both if group["params"]]
        sgd = recipe.optimizer == "sgd"
        self.optimizer = (
            torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=recipe.rate)
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the recipe's rate as a schedule."""
        recipe = self.recipe
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.create_optimizer(), lambda step: recipe.rate_at(step) / recipe.rate
        )
        return self.lr_scheduler

    def _loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        # of the batch alone: nothing has to be remembered over a kill, and whichever process takes it draws the same
        torch.manual_seed(self.recipe.seed * 1_000_003 + inputs["number"])
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.half):
            loss, terms = self.task.loss(model, inputs["batch"])
        return loss, {"rate": self.recipe.rate_at(self.state.global_step), **terms}

    def stepped(self, state: Any, control: Any) -> None:
        """Measure after every so many steps and after the last, and end training where it has grown no better."""
        if state.global_step % self.recipe.measure_every == 0 or state.global_step >= state.max_steps:
            self.measure()
            control.should_save = True
            control.should_training_stop |= self.over()

    def measured(self) -> list[Measured]:
        """Return the measurements of the history."""
        found = []
        for entry in self.state.log_history:
            figures = {k.removeprefix(VALIDATION): v for k, v in entry.items() if k.startswith(VALIDATION)}
            known = {name: math.nan if value is None else value for name, value in figures.items()}
            found += [Measured(int(entry["step"]), known)] if figures else []
        return found

    def over(self) -> bool:
        """Return whether the best measurement is so old that training ends."""
        measured = self.measured()
        best = best_of(self.task, measured)
        since = sum(one.step > best.step for one in measured) if best else 0
        return bool(self.recipe.patience) and since >= self.recipe.patience

    def measure(self) -> None:
        """Measure and keep the candidate, in the main process; all processes have it in their history."""
        told: list[Any] = [None]
        if self.is_world_process_zero():
            self.task.model.eval()
            told = [dict(self.task.measure())]
            with whole(self.candidates / f"{self.state.global_step}.safetensors") as part:
                save_file(weights_of(self.task.model), part)
        if self.args.world_size > 1:
            broadcast_object_list(told)
        self.log({VALIDATION + name: None if math.isnan(value) else value for name, value in told[0].items()})  # type: ignore[misc]
        if self.is_world_process_zero() and not self.task.averages:  # tuned towers are large
            best = best_of(self.task, self.measured()) or self.measured()[0]
            for other in self.candidates.glob("*.safetensors"):
                if other.stem != str(best.step):
                    other.unlink()


def best_of(task: Task, measured: list[Measured]) -> Measured | None:
    """Return the best measurement, of equal ones the earliest; None of none."""
    best: Measured | None = None
    for one in measured:
        if task.better(one.figures, None if best is None else best.figures):
            best = one
    return best


def train(
    task: Task, recipe: Recipe, folder: Path, advance: Advance, **how: Any
) -> tuple[list[Measured], list[dict[str, Any]]]:
    """Train a task to the end; return its measurements and its history. Arguments and errors as of `TaskTrainer`."""
    trainer = TaskTrainer(task, recipe, folder, advance, **how)
    last = last_checkpoint(folder)
    if last is not None:  # killed between its last checkpoint and what follows on training
        state = type(trainer.state).load_from_json(str(last / "trainer_state.json"))
        trainer.state.log_history = state.log_history
        if state.global_step >= recipe.steps or trainer.over():
            put(task.model, load_file(last / WEIGHTS))
            task.model.to(trainer.args.device).eval()
            advance(state.global_step)
            return trainer.measured(), trainer.state.log_history
    history = trainer.run()
    measured = trainer.measured()
    trainer.accelerator.free_memory()
    task.model.eval()
    return measured, history
