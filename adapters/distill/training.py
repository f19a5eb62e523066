"""Stage 2: a stock PEFT LoRA learns the teacher's answers, on the package's trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainingArguments, set_seed

from lvlm_guard.adapters.distill.examples import Examples
from lvlm_guard.adapters.distill.layers import target_modules
from lvlm_guard.adapters.distill.loss import balanced, distance, log_probs, plain_log_probs
from lvlm_guard.adapters.distill.pictures import Pictures
from lvlm_guard.adapters.distill.rows import Layout, Rows
from lvlm_guard.adapters.distill.settings import Recipe
from lvlm_guard.adapters.training.checkpoint import TRAINING, finish, finished
from lvlm_guard.adapters.training.trainer import ResumableTrainer, arguments


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
        TrainingError: the loss or a gradient is not finite, or the folder holds another training.
        KeyboardInterrupt: after the step in progress was finished and saved.
    """
    place, told = folder / TRAINING, {"recipe": recipe.to_dict(), "seed": seed}
    set_seed(seed)
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=target_modules(model, recipe.projector), lora_dropout=0.0
    )
    with warnings.catch_warnings():  # as in `pretrained.with_adapters`
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        student = get_peft_model(model, lora)
    settings = _settings(place, recipe, seed, model.device)
    with settings.main_process_first():
        done = finished(place, told)
    if done:
        student.load_adapter(str(folder), adapter_name="default")
        advance(recipe.steps)
        return student.eval()
    size = recipe.steps * recipe.batch * recipe.accumulate * settings.world_size
    examples = Examples(lines, pictures, recipe.questions, size, seed)
    trainer = Distiller(recipe, student, settings, examples, partial(_collate, Layout(model, processor)), advance)
    history = trainer.run()
    if trainer.is_world_process_zero():
        student.save_pretrained(str(folder))
        finish(place, told, {"steps": trainer.state.global_step}, history)
    trainer.accelerator.wait_for_everyone()
    # takes autocast off, or everything that is measured would be in half precision
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return student.eval()


class Distiller(ResumableTrainer):
    """A trainer whose loss compares with a teacher's answers.

    Args:
        recipe: of the training.
        student: a PEFT model.
        args, dataset, collate, advance: as of `ResumableTrainer`.
    """

    def __init__(
        self, recipe: Recipe, student: Any, args: TrainingArguments, dataset: Examples, collate: Any, advance: Any
    ) -> None:
        super().__init__(student, args, dataset, collate, 1.0, advance)  # type: ignore[arg-type]
        self.recipe, self.student = recipe, student

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch; raises `TrainingError` where it is not finite."""
        rows: Rows = inputs["rows"]
        found = log_probs(self.student, rows, model)
        plain = plain_log_probs(self.student, rows) if self.recipe.keep else None
        loss = balanced(distance(found, rows, plain, self.recipe.soft), rows.first)
        if not bool(torch.isfinite(loss)):
            raise self.refused("The loss")
        self.told["loss"] = float(loss.detach())
        return loss


def _collate(layout: Layout, examples: Sequence[Any]) -> dict[str, Rows]:
    return {"rows": layout.rows(examples)}


def _settings(place: Path, recipe: Recipe, seed: int, device: torch.device) -> TrainingArguments:
    # the option's name up to transformers 5.23, and after
    known = TrainingArguments.__dataclass_fields__
    recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    more: dict[str, Any] = {recompute: True} if recipe.checkpointing else {}
    return arguments(
        place,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported()),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, recipe.steps // 10),
        seed=seed,
        save_steps=recipe.save_every,
        **more,
    )
