"""How far the student is from its teacher, token by token."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.adapters.distill.rows import Rows


def log_probs(model: Any, rows: Rows, caller: Any = None) -> Tensor:
    """Return the log-probabilities of all tokens at each of the N answer steps, [N, V] float32.

    Args:
        model: whose signature counts: the PEFT model, or the plain one.
        rows: a batch on the model's device.
        caller: what is called instead, such as the model in a wrapper of several GPUs.
    """
    inputs, place = dict(rows.inputs), rows.place
    if "logits_to_keep" in _parameters(model):
        kept, place = rows.place.unique(return_inverse=True)
        inputs["logits_to_keep"] = kept
    logits = (caller or model)(**inputs, use_cache=False, return_dict=True).logits
    found: Tensor = logits[rows.row, place].float().log_softmax(-1)
    return found


def plain_log_probs(model: Any, rows: Rows) -> Tensor:
    """Return the same without the adapter that a PEFT model has, and without a gradient."""
    with torch.no_grad(), model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        return log_probs(model, rows)


def _parameters(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters


def distance(student: Tensor, rows: Rows, plain: Tensor | None, soft: bool) -> Tensor:
    """Return the Kullback-Leibler divergence from the target to the student at each step, [N] nats.

    The target of an open step is the guard's distribution (`soft`) or the token that it took; that of a step that
    the plain model had decided is the plain model's distribution (`plain`), or its token. The divergence
    from a single token is its negative log-probability.

    Args:
        student: log-probabilities, [N, V].
        plain: the plain model's, [N, V]; None: its token alone.
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
