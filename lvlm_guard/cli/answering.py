"""Answers of `lvlm-guard generate`: plain, guarded, verified, chosen among several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.session import Execution
    from lvlm_guard.engine.trace import GuardTrace


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        method: that gave it; greedy or sample for a plain one, which has no trace.
        seconds: of generate().
        asked: of each picture, what it was matched with.
        others: scores and texts of the answers that it was chosen from, itself first.
    """

    method: str
    text: str
    tokens: list[int]
    seconds: float
    asked: Sequence[str]
    trace: GuardTrace | None = None
    others: Sequence[tuple[float, str]] = ()


def answers_of(
    model: Any,
    processor: Any,
    method: Any,
    pictures: Sequence[Image],
    prompt: str,
    settings: dict[str, Any],
    *,
    execution: Execution,
    seed: int,
    compare: bool,
    verifier: Any = None,
    best_of: int = 1,
) -> list[Answer]:
    """Return the guarded answer, after the plain one if asked; both start from the same seed.

    Model and processor are not guarded yet; the best of several answers needs a verifier.

    Raises:
        GuardError: the model, the pictures or the prompt can't be guarded.
    """
    from transformers import set_seed

    from lvlm_guard.api import guard
    from lvlm_guard.pretrained import ask, spoken
    from lvlm_guard.verify import ranked

    model, processor = guard(model, processor, method, execution=execution)
    made = []
    for plain in (True, False) if compare else (False,):
        inputs = ask(processor, [pictures], [prompt]).to(model.device, dtype=model.dtype)
        asked = [view.text for view in inputs["guard_views"].views()]
        more: dict[str, Any] = {} if verifier is None else {"verify": verifier}
        more |= {"num_return_sequences": best_of} if best_of > 1 else {}
        if plain:
            del inputs["guard_views"]
            more = {"guard": False}
        set_seed(seed)
        began = time.perf_counter()
        output = model.generate(**inputs, **settings, **more, return_dict_in_generate=True)
        seconds = time.perf_counter() - began
        rows = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        texts = [spoken(processor, row).strip() for row in rows]
        if plain:
            name = "sample" if settings["do_sample"] else "greedy"
            made.append(Answer(name, texts[0], rows[0], seconds, asked))
            continue
        trace, others, best = output.guard, [], 0
        if best_of > 1:
            order = ranked(trace, texts, pictures, verifier.judge(method, model))
            places = [one.index for one in order]
            trace.steps, trace.verdicts = ([told[place] for place in places] for told in (trace.steps, trace.verdicts))
            others, best = [(one.score, texts[one.index]) for one in order], places[0]
            rows[best] = rows[best][: len(trace.steps[0])]  # behind its end it was filled up to the longest
        made.append(Answer(method.name, texts[best], rows[best], seconds, asked, trace, others))
    return made


def verifier_of(model: str, method: Any, matcher: str | None, objects: str | None) -> Any:
    """Return the verifier of the command's options; the embedded model is checked on its own world's objects."""
    from lvlm_guard.embedded.catalog import CLASSES
    from lvlm_guard.verify import Verifier

    world = objects is None and model == "embedded" and getattr(method, "objects", None) is None
    return Verifier(matcher, CLASSES if world else objects)
