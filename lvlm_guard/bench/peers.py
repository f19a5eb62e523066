"""Another package that decodes the same methods, timed beside ours on the same model and pictures.

mitigv has a loop of its own around the model and answers with text, so what is timed is a whole request, the processor
included, and its tokens are those of the text. Both packages have their own defaults, which are the papers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

PACKAGE = "mitigv"


def peers_of(methods: Sequence[str]) -> list[str]:
    """Return those of the methods that mitigv offers too; raises `MissingExtraError` where it is not installed."""
    if find_spec(PACKAGE) is None:
        raise MissingExtraError(f"There is no {PACKAGE} to compare with. Install it: pip install {PACKAGE}")
    there = import_module(PACKAGE).list_mitigators()
    return [name for name in methods if name in there]


def peer_name(method: str) -> str:
    """Return how rows call its implementation: package, version, method."""
    return f"{PACKAGE} {version(PACKAGE)} {method}"


def peer(method: str, model: Any, processor: Any, new_tokens: int) -> Callable[[list[Image], list[str]], list[str]]:
    """Return what answers pictures and prompts greedily with a plain model and processor."""
    loaded = import_module(PACKAGE).load_mitigator(method, model=model, processor=processor, max_new_tokens=new_tokens)

    def answer(pictures: list[Image], prompts: list[str]) -> list[str]:
        text = loaded(pictures, prompts if len(prompts) > 1 else prompts[0])
        return [text] if isinstance(text, str) else list(text)

    return answer
