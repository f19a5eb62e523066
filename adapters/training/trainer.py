"""The one trainer: transformers' `Trainer`, made to go on where it stopped and to end in the same weights.

A checkpoint holds what learns, the optimiser, and the history of losses and measurements. Batch n of a task depends on
the seed and n alone and every step seeds what it draws, so a training that was killed ends in the weights of one that
was not. On several processes a batch is either made by all of them together, or each makes batches of its own; both
ways a pass over the data is as many batches as on one.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import CANDIDATES, Advance, Recipe, last_checkpoint
from lvlm_guard.files import whole

LOG_EVERY = 10
WEIGHTS = "learning.safetensors"
VALIDATION = "val_"  # what names of measured figures begin with in the history
Loss = Callable[[Any, dict[str, Any]], tuple[Tensor, dict[str, float]]]
"""(model, maybe wrapped for several processes, batch) -> its loss, and what is told of it."""
Figures = Mapping[str, float]  # what a measurement found, by name


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


class ResumableTrainer(Trainer, TrainerCallback):
    """A Trainer that keeps what learns alone, stops after a whole step, and refuses numbers that are none.

    As its own callback it clips and checks gradients before they reach the weights, tells progress, and stops all
    processes together.

    Args:
        model, args: what is trained, and `arguments`.
        data, collate: read in its order, what it gives depends on the number alone; makes a batch of its items.
        clip: bound of the gradient's norm.
        advance: told how many steps were done, those of an earlier part included.
    """

    def __init__(
        self, model: Any, args: TrainingArguments, data: Any, collate: Any, loss: Loss, clip: float, advance: Advance
    ) -> None:
        self.clip, self.advance, self.done = clip, advance, 0
        super().__init__(model, args=args, train_dataset=data, data_collator=collate, callbacks=[self])
        self.remove_callback(PrinterCallback)
        self.learner, self.loss_of, self.interrupted = model, loss, False
        self.told: dict[str, float] = {}
        """Of the last step, for the history."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        place = Path(output_dir or str(self.args.output_dir))
        place.mkdir(parents=True, exist_ok=True)
        save_file(weights_of(self.learner), place / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put(self.learner, load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch; raises `TrainingError` where it is not finite."""
        loss, told = self.loss_of(model, inputs)
        if not math.isfinite(value := float(loss.detach())):
            raise self.refused("The loss")
        self.told |= {"loss": value, **told}
        return loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the steps of an earlier part."""
        if state.global_step:
            self._tell(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Clip the gradient; raise `TrainingError` where it is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(learning(self.learner).values()), self.clip))
        self.told["norm"] = norm
        if not math.isfinite(norm):
            raise self.refused("A gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the step, and end training behind it where any process was told to stop."""
        if state.global_step % LOG_EVERY == 0 or state.global_step >= state.max_steps:
            self.log(dict(self.told))
        self._tell(state.global_step)
        if self._anyone_stopped():
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def _tell(self, step: int) -> None:
        self.advance(step - self.done)
        self.done = step

    def _anyone_stopped(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.interrupted
        flag = torch.tensor(float(self.interrupted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, from the last checkpoint where there is one; return the history. Raises as `made_once`."""
        last = last_checkpoint(Path(str(self.args.output_dir)))
        with _stopping(self):
            self.train(resume_from_checkpoint=None if last is None else str(last))
        if self.interrupted:
            raise KeyboardInterrupt
        self.accelerator.wait_for_everyone()
        return [entry for entry in self.state.log_history if "train_runtime" not in entry]

    def refused(self, what: str) -> TrainingError:
        """Return the error that a loss or a gradient is no number."""
        return TrainingError(
            f"{what} is NaN or infinite at step {self.state.global_step + 1}, so training can't go on. Mostly the "
            f"learning rate is too high (now {self.args.learning_rate:g}), or a picture, a value or a weight is broken "
            "or overflows. The last good state is kept; another --rate is another training: give another --out, or "
            "--start-over (of a distillation --retrain)."
        )


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    """Return what trainings of this package have in common; `given` are further fields."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 1, "weight_decay": 0.0,
        "max_grad_norm": 0.0,  # gradients are clipped where they are checked
        "logging_strategy": "no", "logging_nan_inf_filter": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "steps", "save_total_limit": 2, "label_names": ["rows"], "remove_unused_columns": False,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False, "ddp_find_unused_parameters": False,
    }  # fmt: skip
    made = TrainingArguments(**common | given)
    made._n_gpu = min(made.n_gpu, 1)  # several visible GPUs without a launcher: one is used, and nothing is scattered
    return made


@contextmanager
def _stopping(trainer: ResumableTrainer) -> Iterator[None]:
    """Let the first Ctrl-C end the step in progress and save it, instead of tearing it apart."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def heard(*_: Any) -> None:
        trainer.interrupted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure after every so many steps and after the last, and end training where it has grown no better."""
        super().on_step_end(args, state, control)
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
