"""The one trainer: transformers' `Trainer`, made to go on where it stopped and to end in the same weights.

A checkpoint holds what learns, the optimiser, and the history of losses and measurements.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import Advance, last_checkpoint

LOG_EVERY = 10
WEIGHTS = "learning.safetensors"
Loss = Callable[[Any, dict[str, Any]], tuple[Tensor, dict[str, float]]]
"""(model, maybe wrapped for several processes, batch) -> its loss, and what is told of it."""


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


class ResumableTrainer(Trainer):
    """A Trainer that keeps what learns alone, stops after a whole step, and refuses numbers that are none.

    Args:
        model, args: what is trained, and `arguments`.
        data, collate: read in its order, what it gives depends on the number alone; makes a batch of its items.
        clip: bound of the gradient's norm.
        advance: told how many steps were done, those of an earlier part included.
    """

    def __init__(
        self, model: Any, args: TrainingArguments, data: Any, collate: Any, loss: Loss, clip: float, advance: Advance
    ) -> None:
        watch = _Watch(self, clip, advance)
        super().__init__(model, args=args, train_dataset=data, data_collator=collate, callbacks=[watch])
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

    def stepped(self, state: Any, control: Any) -> None:
        """Do what is to be done after each step."""

    def run(self) -> list[dict[str, Any]]:
        """Train to the end, from the last checkpoint where there is one; return the history. Raises as `tasks.fit`."""
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

    def _tell(self, step: int) -> None:
        self._advance(step - self._told)
        self._told = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            self._tell(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        norm = float(torch.nn.utils.clip_grad_norm_(list(learning(self._trainer.learner).values()), self._clip))
        self._trainer.told["norm"] = norm
        if not math.isfinite(norm):
            raise self._trainer.refused("A gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % LOG_EVERY == 0 or state.global_step >= state.max_steps:
            self._trainer.log(dict(self._trainer.told))
        self._tell(state.global_step)
        if self._anyone_stopped():
            self._trainer.interrupted = True
            control.should_save = control.should_training_stop = True
        self._trainer.stepped(state, control)

    def _anyone_stopped(self) -> bool:
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return self._trainer.interrupted
        flag = torch.tensor(float(self._trainer.interrupted), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


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
