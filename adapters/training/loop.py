"""The loop: steps, measurements, saved states. On accelerate; a bare loop of the same model is hardly faster.

`python -m lvlm_guard.adapters.training` times both.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lvlm_guard.adapters.training.checkpoint import Checkpoint, Measured, learning
from lvlm_guard.adapters.training.errors import TrainingError
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.task import Task

LOG_EVERY = 10
Advance = Callable[[int], object]


def train(
    task: Task, recipe: Recipe, kept: Checkpoint, advance: Advance, *, device: str = "auto", workers: int = 0
) -> list[Measured]:
    """Train to the end, from the saved state where there is one.

    Args:
        task: what is trained, moved to its device here.
        recipe: how.
        kept: where states, candidates and the curve are written, by the main process alone.
        advance: told how many steps were done.
        device: "cpu", or "auto" for accelerate's choice.
        workers: processes that make batches; 0 makes them here, as is best where pictures are in memory.

    Returns:
        The measurements; the weights of each, or of the best alone, are candidates of `kept`.

    Raises:
        TrainingError: a loss or a gradient is not finite.
        KeyboardInterrupt: after the step in progress was saved.
    """
    accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
    task.model.to(accelerator.device)
    optimizer = _optimizer(task.model, recipe)
    if accelerator.is_main_process:
        kept.begin()
    accelerator.wait_for_everyone()
    step, measured = kept.resume(task.model, optimizer)
    if accelerator.is_main_process:
        kept.rewind(step)
    model: Any = accelerator.prepare_model(task.model) if accelerator.num_processes > 1 else task.model
    half = _half(recipe, accelerator.device)
    advance(step)
    with torch.random.fork_rng(), _stopping() as stopped:
        for batch in _batches(task, recipe, step, accelerator, workers):
            entry = _step(task, model, batch, optimizer, recipe, step, accelerator, half)
            step += 1
            advance(1)
            last = step == recipe.steps
            if accelerator.is_main_process and (step % LOG_EVERY == 0 or last):
                kept.log({"step": step, **entry})
            ends = False
            if step % recipe.measure_every == 0 or last:
                ends = _measure(task, recipe, kept, step, measured, accelerator)
            stop = _any(stopped, accelerator)
            if accelerator.is_main_process and (step % recipe.save_every == 0 or ends or last or stop):
                kept.save(step, task.model, optimizer, measured)
            if stop:
                raise KeyboardInterrupt
            if ends:
                break
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    task.model.eval()
    return measured


def _step(
    task: Task,
    model: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
    accelerator: Accelerator,
    half: bool,
) -> dict[str, float]:
    task.model.train()
    # of the step alone, so that nothing has to be remembered over a kill
    torch.manual_seed((recipe.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index)
    rate = recipe.rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half):
        loss, terms = task.loss(model, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(_not_finite("The loss", step, recipe))
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    norm = float(torch.nn.utils.clip_grad_norm_(list(learning(task.model).values()), recipe.clip))
    if not math.isfinite(norm):
        raise TrainingError(_not_finite("A gradient", step, recipe))
    optimizer.step()
    return {"loss": value, "rate": rate, "norm": norm, **terms}


def _measure(
    task: Task, recipe: Recipe, kept: Checkpoint, step: int, measured: list[Measured], accelerator: Accelerator
) -> bool:
    """Measure and keep the candidate, in the main process; return whether training ends."""
    told: list[Any] = [None]
    if accelerator.is_main_process:
        begun = time.monotonic()
        task.model.eval()
        figures = dict(task.measure())
        best = _best(task, measured)
        if task.keeps_all or task.better(figures, None if best is None else best.figures):
            kept.keep_candidate(step, task.model, alone=not task.keeps_all)
        kept.log({"step": step, "measured": figures, "seconds": round(time.monotonic() - begun, 2)})
        told = [figures]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    measured.append(Measured(step, told[0]))
    best = _best(task, measured)
    since = sum(one.step > best.step for one in measured) if best else 0
    return bool(recipe.patience) and since >= recipe.patience


def _best(task: Task, measured: list[Measured]) -> Measured | None:
    best: Measured | None = None
    for one in measured:
        if task.better(one.figures, None if best is None else best.figures):
            best = one
    return best


class _Numbered(Dataset[Any]):
    """Batches by their number."""

    def __init__(self, task: Task, numbers: list[int]) -> None:
        self.task, self.numbers = task, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.task.batch(self.numbers[index])


def _batches(task: Task, recipe: Recipe, done: int, accelerator: Accelerator, workers: int) -> Iterator[Any]:
    """Yield this process's batches from a step on."""
    numbers = [step * accelerator.num_processes + accelerator.process_index for step in range(done, recipe.steps)]
    if not workers:
        return (task.batch(number) for number in numbers)
    return iter(DataLoader(_Numbered(task, numbers), batch_size=None, num_workers=workers))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(learning(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.rate)


def _half(recipe: Recipe, device: torch.device) -> bool:
    if recipe.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return recipe.precision == "bfloat16"


def _any(stopped: list[bool], accelerator: Accelerator) -> bool:
    """Return whether a process was told to stop; all of them then stop after the same step."""
    if accelerator.num_processes == 1:
        return bool(stopped)
    flag = torch.tensor(float(bool(stopped)), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum") > 0)


@contextmanager
def _stopping() -> Iterator[list[bool]]:
    """Let the first Ctrl-C end the step in progress and save it, instead of tearing it apart; yields a list."""
    heard: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = signal.getsignal(signal.SIGINT)

    def hear(*_: Any) -> None:
        heard.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def _not_finite(what: str, step: int, recipe: Recipe) -> str:
    return (
        f"{what} is NaN or infinite at step {step + 1}, so training can't go on. Mostly the learning rate is too high "
        f"(now {recipe.rate:g}), or a picture or a value is broken. The last good state is kept; a lower --rate is "
        "another training: give another --out, or --start-over."
    )
