"""Stage 2: a stock PEFT LoRA learns the teacher's answers, token by token, on the package's trainer.

Which answers a step sees is drawn from the example's own number, so a resumed run sees the same.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL.Image import Image
from torch import Tensor, nn
from transformers import TrainingArguments, set_seed

from lvlm_guard.adapters.distill.lessons import Answer, Lesson, Pictures, Recipe
from lvlm_guard.adapters.distill.rows import Layout, Rows
from lvlm_guard.adapters.training.recipe import Advance, Learnt, made_once
from lvlm_guard.adapters.training.trainer import ResumableTrainer, arguments
from lvlm_guard.errors import UnsupportedModelError

LANGUAGE = ("language_model", "text_model")
PROJECTORS = ("multi_modal_projector", "merger", "language_projection")  # LLaVA and LLaVA-NeXT, Qwen, InstructBLIP
HEADS = ("lm_head", "embed_out")

YES, HARD_NO = 0.4, 0.2  # shares of questions that were answered yes; and no, though there was reason to doubt
DOUBT = 0.05  # the matcher's probability above which there was


def target_modules(model: Any, projector: bool) -> str:
    """Return PEFT's `target_modules` for every linear layer of the language model, as one regular expression.

    With `projector` the layers between image tower and language model are among them.

    Raises:
        UnsupportedModelError: no part of the model has a name that is known.
    """
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        path = name.split(".")
        part = next((one for one in path if one in (*LANGUAGE, *(PROJECTORS if projector else ()))), None)
        if part is not None and isinstance(module, nn.Linear) and path[-1] not in HEADS:
            found.setdefault(part, set()).add(path[-1])
    if not found.keys() & set(LANGUAGE):
        raise UnsupportedModelError(
            f"In this {type(model).__name__} no linear layer lies in a part called {' or '.join(LANGUAGE)}, so it is "
            "not known what to adapt. Add its name to LANGUAGE in lvlm_guard/adapters/distill/training.py."
        )
    return "|".join(
        # a projector of one layer is that layer
        rf"(.*\.)?{part}" if leaves == {part} else rf"(.*\.)?{part}\.(.*\.)?({'|'.join(sorted(leaves))})"
        for part, leaves in sorted(found.items())
    )


class Examples:
    """A map-style data set of `size` items, each a picture and answers about it with some `questions`, drawn by a seed.

    Pictures come again, in another order, once all have been seen.
    """

    def __init__(self, lines: Sequence[str], pictures: Pictures, questions: int, size: int, seed: int) -> None:
        self._lines, self._pictures, self._questions, self._size, self._seed = lines, pictures, questions, size, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Image, list[Answer]]:
        round_, place = divmod(index, len(self._lines))
        order = np.random.default_rng([self._seed, 0, round_]).permutation(len(self._lines))
        lesson = Lesson.of(self._lines[order[place]])
        rng = np.random.default_rng([self._seed, 1, index])
        return self._pictures.load(lesson.picture), chosen(lesson.answers, self._questions, rng)


def chosen(answers: Sequence[Answer], questions: int, rng: np.random.Generator) -> list[Answer]:
    """Return one free answer, and some about objects: 40 % yes, 20 % no where there was reason to doubt, the rest any.

    There was reason to doubt where the guard had a choice, or the matcher gave more than .05. A kind that a
    picture does not have is made up for from the rest. No answer comes twice.
    """
    free = [answer for answer in answers if answer.object is None]
    rest = [answer for answer in answers if answer.object is not None]
    taken = [free[int(rng.integers(len(free)))]] if free else []
    for u in rng.random(min(questions, len(rest))):
        pool = rest
        if u < YES:
            pool = [answer for answer in rest if answer.yes]
        elif u < YES + HARD_NO:
            pool = [a for a in rest if not a.yes and (a.open or (a.support or 0.0) > DOUBT)]
        pool = pool or rest
        one = pool[int(rng.integers(len(pool)))]
        rest.remove(one)
        taken.append(one)
    return taken


def log_probs(model: Any, rows: Rows, caller: Any = None) -> Tensor:
    """Return the log-probabilities of all tokens at each of the N answer steps of a batch, [N, V] float32.

    The model's signature counts, without PEFT; `caller` is called instead, such as it in a wrapper of several GPUs.
    """
    inputs, place = dict(rows.inputs), rows.place
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        kept, place = rows.place.unique(return_inverse=True)
        inputs["logits_to_keep"] = kept
    logits = (caller or model)(**inputs, use_cache=False, return_dict=True).logits
    found: Tensor = logits[rows.row, place].float().log_softmax(-1)
    return found


def plain_log_probs(model: Any, rows: Rows) -> Tensor:
    """Return the same without the adapter that a PEFT model has, and without a gradient."""
    with torch.no_grad(), model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        return log_probs(model, rows)


def distance(student: Tensor, rows: Rows, plain: Tensor | None, soft: bool) -> Tensor:
    """Return the Kullback-Leibler divergence from the target to the student at each step, [N] nats.

    The target of an open step is the guard's distribution (`soft`) or the token that it took; that of a step that the
    plain model had decided is its distribution, or where `plain` is None its token. The divergence from a single token
    is its negative log-probability. `student` and `plain` are log-probabilities, [N, V].
    """
    loss = -student.gather(-1, rows.token[:, None]).squeeze(-1)
    if soft:
        p = rows.soft / rows.soft.sum(-1, keepdim=True).clamp(min=1e-9)
        cross = -(p * student.gather(-1, rows.soft_ids)).sum(-1)
        loss = torch.where(rows.open, cross - torch.special.entr(p).sum(-1), loss)
    if plain is not None:
        # a token that can't come has log-probability -inf in both, and adds nothing
        terms = plain.exp() * (plain - student)
        loss = torch.where(rows.open, loss, terms.nan_to_num(nan=0.0).sum(-1))
    return loss


def balanced(loss: Tensor, first: Tensor) -> Tensor:
    """Return the mean over the first tokens of answers about objects, plus that over all others.

    Otherwise the few tokens that say yes or no would drown among those of descriptions.
    """
    parts = [loss[which].mean() for which in (first, ~first) if bool(which.any())]
    return torch.stack(parts).sum()


def train(
    model: Any,
    processor: Any,
    lines: Sequence[str],
    pictures: Pictures,
    recipe: Recipe,
    seed: int,
    folder: Path,
    advance: Advance,
) -> Any:
    """Train one adapter and save it in a folder, see `made_once`; return the PEFT model.

    Killed at any moment, the same call goes on from the last checkpoint, and ends in the weights of an unbroken run.

    Args:
        model, processor: plain; the model is wrapped in place.
        lines: of the answer file, failed pictures left out.
        pictures: loads them.
        seed: of the adapter's first weights and of what is drawn.
    """
    set_seed(seed)
    lora = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=target_modules(model, recipe.projector), lora_dropout=0.0
    )
    with warnings.catch_warnings():  # as in `pretrained.with_adapters`
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        student = get_peft_model(model, lora)

    def load(_: Path) -> Any:
        student.load_adapter(str(folder), adapter_name="default")
        return student

    def learn(place: Path) -> Learnt[Any]:
        # the option's name up to transformers 5.23, and after
        known = TrainingArguments.__dataclass_fields__
        recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        kind: str = model.device.type
        settings = arguments(
            place,
            use_cpu=kind == "cpu",
            bf16=kind == "cpu" or (kind == "cuda" and torch.cuda.is_bf16_supported()),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            gradient_accumulation_steps=recipe.accumulate,
            learning_rate=recipe.rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(20, recipe.steps // 10),
            seed=seed,
            save_steps=recipe.save_every,
            **({recompute: True} if recipe.checkpointing else {}),
        )
        size = recipe.steps * recipe.batch * recipe.accumulate * settings.world_size
        examples, layout = Examples(lines, pictures, recipe.questions, size, seed), Layout(model, processor)

        def loss(model: Any, inputs: dict[str, Rows]) -> tuple[Tensor, dict[str, float]]:
            rows = inputs["rows"]
            plain = plain_log_probs(student, rows) if recipe.keep else None
            return balanced(distance(log_probs(student, rows, model), rows, plain, recipe.soft), rows.first), {}

        trainer = ResumableTrainer(
            student, settings, examples, lambda some: {"rows": layout.rows(some)}, loss, 1.0, advance
        )
        history = trainer.run()
        # takes autocast off, or everything that is measured would be in half precision
        made = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trainer.accelerator.free_memory()
        return made, {"steps": trainer.state.global_step}, history

    told = {"recipe": asdict(recipe), "seed": seed}
    return made_once(load, told, recipe.steps, seed, folder, advance, learn).eval()
