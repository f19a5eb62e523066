"""The one trainer: transformers' `Trainer`, made to go on where it stopped and to end in the same weights.

Batch n depends on the seed and n alone and every step seeds what it draws, so a training that was killed ends in the
weights of one that was not. A checkpoint holds what learns, the optimiser, and the history of losses and measurements.
On several processes a batch is either made by all of them together, or each makes batches of its own; both ways a pass
over the data is as many batches as on one.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import (
    CANDIDATES,
    Batches,
    Figures,
    Measured,
    Recipe,
    Task,
    last_checkpoint,
    learning,
    put,
    weights_of,
)
from lvlm_guard.files import whole

LOG_EVERY = 10
WEIGHTS = "learning.safetensors"
VALIDATION = "val_"
"""What names of measured figures begin with in the history."""

Advance = Callable[[int], object]


class ResumableTrainer(Trainer):
    """A Trainer that keeps what learns alone, stops after a whole step, and refuses numbers that are none.

    Args:
        model: what is trained.
        args: see `arguments`.
        dataset: read in its order: what it gives depends on the number alone.
        collate: makes a batch of its items.
        clip: bound of the gradient's norm.
        advance: told how many steps were done, those of an earlier part included.
    """

    def __init__(
        self, model: Any, args: TrainingArguments, dataset: Dataset[Any], collate: Any, clip: float, advance: Advance
    ) -> None:
        super().__init__(
            model, args=args, train_dataset=dataset, data_collator=collate, callbacks=[_Watch(self, clip, advance)]
        )
        self.remove_callback(PrinterCallback)
        self.learner: nn.Module = model
        self.interrupted = False
        self.told: dict[str, float] = {}
        """Of the last step, for the history."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        place = Path(output_dir or str(self.args.output_dir))
        place.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in weights_of(self.learner).items()}, place / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put(self.learner, load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, from the last checkpoint where there is one; return the history.

        Raises:
            TrainingError: a loss or a gradient is not finite.
            KeyboardInterrupt: after the step in progress was finished and saved.
        """
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


class _Watch(TrainerCallback):
    """Clips and checks gradients before they reach the weights, tells progress, and stops all processes together."""

    def __init__(self, trainer: ResumableTrainer, clip: float, advance: Advance) -> None:
        self._trainer, self._clip, self._advance, self._told = trainer, clip, advance, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            self._advance(state.global_step)
            self._told = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(list(learning(self._trainer.learner).values()), self._clip)
        self._trainer.told["norm"] = float(norm)
        if not math.isfinite(float(norm)):
            raise self._trainer.refused("A gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        if state.global_step % LOG_EVERY == 0 or last:
            self._trainer.log(dict(self._trainer.told))
        self._advance(state.global_step - self._told)
        self._told = state.global_step
        if self._anyone_stopped():
            self._trainer.interrupted = True
            control.should_save = control.should_training_stop = True

    def _anyone_stopped(self) -> bool:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return self._trainer.interrupted
        flag = torch.tensor(float(self._trainer.interrupted), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


class TaskTrainer(ResumableTrainer):
    """Trains a task: its batches, its loss, and what it measures on the way.

    Args:
        task: moved to its device here.
        recipe: how.
        folder: of checkpoints and candidates.
        advance: told how many steps were done.
        device: "cpu", or "auto".
        workers: processes that make batches.
        report_to: trackers that `transformers` knows: "tensorboard", "wandb", ...
    """

    def __init__(
        self, task: Task, recipe: Recipe, folder: Path, advance: Advance, device: str, workers: int, report_to: str
    ) -> None:
        args = arguments(
            folder,
            use_cpu=device == "cpu",
            max_steps=recipe.steps,
            learning_rate=recipe.rate,
            seed=recipe.seed,
            save_steps=recipe.save_every,
            dataloader_num_workers=workers,
            report_to=report_to,
        )
        shared = task.batches.shares
        micro = recipe.accumulate if shared else -(-recipe.accumulate // args.world_size)
        args.gradient_accumulation_steps = micro
        dataset = Numbered(task.batches, recipe.steps * micro, args.world_size)
        self.task, self.recipe, self.candidates = task, recipe, folder / CANDIDATES
        super().__init__(task.model, args, dataset, alone, recipe.clip, advance)
        self.add_callback(_Measure(self))
        auto = self.args.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.half = auto if recipe.precision == "auto" else recipe.precision == "bfloat16"

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """Return AdamW or SGD, without decay of what is no matrix."""
        recipe, parameters = self.recipe, list(learning(self.learner).values())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = (
            torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9)
            if recipe.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=recipe.rate)
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the recipe's rate as a schedule."""
        recipe = self.recipe
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.create_optimizer(), lambda step: recipe.rate_at(step) / recipe.rate
        )
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch; raises `TrainingError` where it is not finite."""
        # of the batch alone: nothing has to be remembered over a kill, and whichever process takes it draws the same
        torch.manual_seed(self.recipe.seed * 1_000_003 + inputs["number"])
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.half):
            loss, terms = self.task.loss(model, inputs["batch"])
        if not math.isfinite(value := float(loss.detach())):
            raise self.refused("The loss")
        self.told |= {"loss": value, "rate": self.recipe.rate_at(self.state.global_step), **terms}
        return loss

    def measured(self) -> list[Measured]:
        """Return the measurements of the history."""
        found = []
        for entry in self.state.log_history:
            figures = {k.removeprefix(VALIDATION): v for k, v in entry.items() if k.startswith(VALIDATION)}
            if figures:
                found.append(
                    Measured(int(entry["step"]), {k: math.nan if v is None else v for k, v in figures.items()})
                )
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
            figures: Figures = dict(self.task.measure())
            best = best_of(self.task, self.measured())
            if self.task.keeps_all or self.task.better(figures, None if best is None else best.figures):
                self._keep_candidate()
            told = [figures]
        if self.args.world_size > 1:
            broadcast_object_list(told)
        self.log({VALIDATION + name: None if math.isnan(value) else value for name, value in told[0].items()})  # type: ignore[misc]

    def _keep_candidate(self) -> None:
        place = self.candidates / f"{self.state.global_step}.safetensors"
        place.parent.mkdir(exist_ok=True)
        with whole(place) as part:
            save_file({name: value.contiguous() for name, value in weights_of(self.task.model).items()}, part)
        for other in () if self.task.keeps_all else self.candidates.glob("*.safetensors"):
            if other != place:
                other.unlink()


class _Measure(TrainerCallback):
    """Measures after every so many steps and after the last, and ends training where it has grown no better."""

    def __init__(self, trainer: TaskTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._trainer.recipe.measure_every == 0 or state.global_step >= state.max_steps:
            self._trainer.measure()
            control.should_save = True
            control.should_training_stop |= self._trainer.over()


class Numbered(Dataset[Any]):
    """Batches of a task by their number, for all processes.

    Args:
        batches: makes them.
        count: that each process takes.
        world: processes; of every so many items each takes one.
    """

    def __init__(self, batches: Batches, count: int, world: int) -> None:
        self.batches, self.count, self.world = batches, count, world

    def __len__(self) -> int:
        return self.count * self.world

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, share = divmod(index, self.world) if self.batches.shares else (index, 0)
        return {"number": number, "batch": self.batches.batch(number, share, self.world)}


def alone(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one item of a list."""
    return items[0]


def best_of(task: Task, measured: list[Measured]) -> Measured | None:
    """Return the best measurement, of equal ones the earliest; None of none."""
    best: Measured | None = None
    for one in measured:
        if task.better(one.figures, None if best is None else best.figures):
            best = one
    return best


def train(
    task: Task,
    recipe: Recipe,
    folder: Path,
    advance: Advance,
    *,
    device: str = "auto",
    workers: int = 0,
    report_to: str = "none",
) -> tuple[list[Measured], list[dict[str, Any]]]:
    """Train a task to the end; return its measurements and its history. Arguments and errors as of `TaskTrainer`."""
    trainer = TaskTrainer(task, recipe, folder, advance, device, workers, report_to)
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


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    """Return what trainings of this package have in common; `given` are further fields."""
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "max_grad_norm": 0.0,  # gradients are clipped where they are checked
        "weight_decay": 0.0,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["rows"],
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }
    made = TrainingArguments(**common | given)
    made._n_gpu = min(made.n_gpu, 1)  # several visible GPUs without a launcher: one is used, and nothing is scattered
    return made


def gathered(part: Tensor, total: int) -> Tensor:
    """Return the rows of all processes in their order, with gradients, from each one's every n-th row.

    The gradient of each row is the sum over processes; averaged by distributed training, parameters have the gradient
    of the whole batch.

    Args:
        part: [ceil(total / processes), d], padded where there are fewer.
        total: rows of all.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return part
    everyones: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return everyones.transpose(0, 1).reshape(-1, part.shape[-1])[:total]


class _Gathered(torch.autograd.Function):
    """The tensors of all processes, [processes, ...]; torch's own is deprecated in new releases."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        everyones = gradients[0].contiguous()
        torch.distributed.all_reduce(everyones)
        return everyones[torch.distributed.get_rank()]


def share_of(total: int, index: int, world: int) -> list[int]:
    """Return the rows that a process takes of `total`: every n-th, the first again where there are fewer."""
    each = -(-total // world)
    return [k if k < total else 0 for k in (index + step * world for step in range(each))]


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
