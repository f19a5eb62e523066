"""Stage 2: a stock PEFT LoRA learns the teacher's answers, on transformers' Trainer."""

from __future__ import annotations

import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from lvlm_guard.adapters.distill.errors import DistillError
from lvlm_guard.adapters.distill.examples import Examples
from lvlm_guard.adapters.distill.layers import target_modules
from lvlm_guard.adapters.distill.loss import balanced, distance, log_probs, plain_log_probs
from lvlm_guard.adapters.distill.pictures import Pictures
from lvlm_guard.adapters.distill.rows import Layout, Rows
from lvlm_guard.adapters.distill.settings import Recipe
from lvlm_guard.adapters.distill.state import CHECKPOINTS, DONE, begin, finished, last_checkpoint, write_json


def train(
    model: Any,
    processor: Any,
    lines: Sequence[str],
    pictures: Pictures,
    recipe: Recipe,
    seed: int,
    folder: Path,
    advance: Callable[[int], object],
) -> Any:
    """Train one adapter and save it; one that is there already is not trained again.

    Killed at any moment, the same call goes on from the last checkpoint, and ends in the weights of an unbroken run.

    Args:
        model: plain; it is wrapped in place.
        processor: plain.
        lines: of the answer file, failed pictures left out.
        pictures: loads them.
        seed: of the adapter's first weights and of what is drawn.
        folder: where the adapter is saved.
        advance: told how many steps were done.

    Returns:
        The PEFT model.

    Raises:
        DistillError: the loss or a gradient is not finite, or the folder holds another training.
        KeyboardInterrupt: after the step in progress was finished and saved.
    """
    told = {"recipe": recipe.to_dict(), "seed": seed}
    set_seed(seed)
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=target_modules(model, recipe.projector), lora_dropout=0.0
    )
    with warnings.catch_warnings():  # as in `pretrained.with_adapters`
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        student = get_peft_model(model, lora)
    if finished(folder, told):
        student.load_adapter(str(folder), adapter_name="default")
        advance(recipe.steps)
        return student.eval()
    state = folder / CHECKPOINTS
    arguments = _arguments(state, recipe, seed, model.device)
    with arguments.main_process_first():
        begin(state, told)
    size = recipe.steps * recipe.batch * recipe.accumulate * arguments.world_size
    examples = Examples(lines, pictures, recipe.questions, size, seed)
    layout = Layout(model, processor)
    trainer = Distiller(
        recipe,
        student,
        args=arguments,
        train_dataset=examples,
        data_collator=partial(_collate, layout),
        callbacks=[_Watch(advance, state)],
    )
    trainer.remove_callback(PrinterCallback)
    last = last_checkpoint(state)
    with _finishing_the_step(trainer):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_world_process_zero():
        student.save_pretrained(str(folder))
        write_json(folder / "curve.json", trainer.state.log_history)
        write_json(folder / DONE, told | {"steps": trainer.state.global_step})
        shutil.rmtree(state, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    # takes autocast off, or everything that is measured would be in half precision
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return student.eval()


class Distiller(Trainer):
    """A Trainer whose loss compares with a teacher's answers.

    Args:
        recipe: of the training.
        student: a PEFT model.
        **named: of `Trainer`.
    """

    def __init__(self, recipe: Recipe, student: Any, **named: Any) -> None:
        super().__init__(student, **named)
        self.recipe, self.student, self.interrupted = recipe, student, False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch; raises `DistillError` where it is not finite."""
        rows: Rows = inputs["rows"]
        found = log_probs(self.student, rows, model)
        plain = plain_log_probs(self.student, rows) if self.recipe.keep else None
        loss = balanced(distance(found, rows, plain, self.recipe.soft), rows.first)
        if not bool(torch.isfinite(loss)):
            raise DistillError(_not_finite("The loss", self.state.global_step, self.recipe, str(self.args.output_dir)))
        return loss

    def _get_train_sampler(self, *_: Any) -> Any:
        assert isinstance(self.train_dataset, Examples)
        return SequentialSampler(self.train_dataset)  # the examples are drawn by their number already


class _Watch(TrainerCallback):
    """Tells progress, and stops before a gradient that is not finite reaches the weights."""

    def __init__(self, advance: Callable[[int], object], state: Path) -> None:
        self._advance, self._state, self._told = advance, state, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the steps done, those of an earlier part included."""
        self._advance(state.global_step - self._told)
        self._told = state.global_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Raise `DistillError` where a gradient is not finite."""
        sums = [p.grad.float().abs().sum() for p in model.parameters() if p.grad is not None]
        if not bool(torch.isfinite(torch.stack(sums).sum())):
            raise DistillError(_not_finite("A gradient", state.global_step, None, str(self._state)))


def _not_finite(what: str, step: int, recipe: Recipe | None, state: str) -> str:
    rate = f" (now {recipe.rate:g})" if recipe else ""
    return (
        f"{what} is NaN or infinite at step {step + 1}, so training can't go on. Mostly the learning rate is too high"
        f"{rate}, or the model's weights overflow in float16: load it in bfloat16 or float32. The answers and the last "
        f"good checkpoint are kept ({state}); another --rate starts the training, not the answers, anew: --retrain."
    )


def _collate(layout: Layout, examples: Sequence[Any]) -> dict[str, Rows]:
    return {"rows": layout.rows(examples)}


def _arguments(state: Path, recipe: Recipe, seed: int, device: torch.device) -> TrainingArguments:
    # the option's name up to transformers 5.23, and after
    known = TrainingArguments.__dataclass_fields__
    recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    more: dict[str, Any] = {recompute: True} if recipe.checkpointing else {}
    half = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    return TrainingArguments(
        output_dir=str(state),
        use_cpu=device.type == "cpu",
        bf16=half,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, recipe.steps // 10),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        logging_steps=min(10, recipe.save_every),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["rows"],
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        **more,
    )


@contextmanager
def _finishing_the_step(trainer: Distiller) -> Iterator[None]:
    """Let the first Ctrl-C end the step in progress and save it, instead of tearing it apart."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.interrupted:
                control.should_save = control.should_training_stop = True

    def heard(*_: Any) -> None:
        trainer.interrupted = True
        signal.signal(signal.SIGINT, before)

    trainer.add_callback(Stop())
    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
