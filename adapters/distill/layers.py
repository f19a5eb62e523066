"""Which layers the LoRA adapts: every linear layer of the language model, and of what feeds it the picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from lvlm_guard.errors import UnsupportedModelError

LANGUAGE = ("language_model", "text_model")
PROJECTORS = ("multi_modal_projector", "merger", "language_projection")  # LLaVA and LLaVA-NeXT, Qwen, InstructBLIP
HEADS = ("lm_head", "embed_out")


def target_modules(model: Any, projector: bool) -> str:
    """Return PEFT's `target_modules` for a model, as one regular expression over full module names.

    Args:
        model: not wrapped yet.
        projector: whether the layers between image tower and language model are among them.

    Raises:
        UnsupportedModelError: no part of the model has a name that is known.
    """
    language = _linear(model, LANGUAGE)
    if not language:
        raise UnsupportedModelError(
            f"In this {type(model).__name__} no linear layer lies in a part called {' or '.join(LANGUAGE)}, so it is "
            "not known what to adapt. Add its name to LANGUAGE in lvlm_guard/adapters/distill/layers.py."
        )
    found = _linear(model, PROJECTORS) if projector else {}
    return "|".join(_pattern(part, leaves) for part, leaves in sorted((language | found).items()))


def _pattern(part: str, leaves: set[str]) -> str:
    if leaves == {part}:  # a projector of one layer
        return rf"(.*\.)?{part}"
    return rf"(.*\.)?{part}\.(.*\.)?({'|'.join(sorted(leaves))})"


def _linear(model: Any, parts: tuple[str, ...]) -> dict[str, set[str]]:
    """Return part -> last names of its linear layers."""
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        path = name.split(".")
        part = next((one for one in path if one in parts), None)
        if part is None or not isinstance(module, nn.Linear) or path[-1] in HEADS:
            continue
        found.setdefault(part, set()).add(path[-1])
    return found
