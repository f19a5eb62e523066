"""Answers of `lvlm-guard generate`: plain, guarded, verified, chosen among several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.session import Execution
    from lvlm_guard.engine.trace import GuardTrace


@dataclass
class Answer:
    """One answer.

    Args:
        method: that gave it; greedy or sample for a plain one.
        text: what it says.
        tokens: its ids.
        seconds: of generate().
        trace: the guard's, None for a plain answer.
        texts: of each picture, what it was matched with.
        others: scores and texts of the answers that it was chosen from, itself first.
    """

    method: str
    text: str
    tokens: list[int]
    seconds: float
    trace: GuardTrace | None = None
    texts: list[str] = field(default_factory=list)
    others: list[tuple[float, str]] = field(default_factory=list)


def answer(
    model: Any,
    processor: Any,
    method: Any,
    pictures: Sequence[Image],
    prompt: str,
    settings: dict[str, Any],
    execution: Execution,
    seed: int,
    compare: bool,
    verifier: Any = None,
    best_of: int = 1,
) -> list[Answer]:
    """Return the guarded answer, after the plain one if asked; both start from the same seed.

    Args:
        model: not guarded yet, as is the processor.
        processor: the model's.
        method: that guards it.
        pictures: of the prompt.
        prompt: what is asked.
        settings: of generate().
        execution: how branches are run.
        seed: of what is sampled.
        compare: whether to answer plainly too.
        verifier: what checks the guarded answer; None for nothing.
        best_of: guarded answers to sample, of which the best is given; more than one needs a verifier.

    Raises:
        GuardError: the model, the pictures or the prompt can't be guarded.
    """
    from transformers import set_seed

    from lvlm_guard.api import guard
    from lvlm_guard.pretrained import ask, spoken

    model, processor = guard(model, processor, method, execution=execution)
    answers = []
    for plain in (True, False) if compare else (False,):
        inputs = ask(processor, [pictures], [prompt]).to(model.device, dtype=model.dtype)
        asked = [view.text for view in inputs["guard_views"].views()]
        set_seed(seed)
        began = time.perf_counter()
        if plain:
            del inputs["guard_views"]
            output = model.generate(**inputs, **settings, guard=False, return_dict_in_generate=True)
        else:
            more = {"verify": verifier} if verifier is not None else {}
            more |= {"num_return_sequences": best_of} if best_of > 1 else {}
            output = model.generate(**inputs, **settings, **more, return_dict_in_generate=True)
        seconds = time.perf_counter() - began
        rows = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        texts = [spoken(processor, row).strip() for row in rows]
        trace = None if plain else output.guard
        others = []
        best = 0
        if trace is not None and best_of > 1:
            order = _chosen(trace, texts, pictures, verifier, method, model)
            others, best = [(one.score, texts[one.index]) for one in order], order[0].index
            rows[best] = rows[best][: len(trace.steps[0])]  # behind its end it was filled up to the longest
        name = method.name if not plain else "sample" if settings["do_sample"] else "greedy"
        answers.append(Answer(name, texts[best], rows[best], seconds, trace, asked, others))
    return answers


def verifier_of(model: str, method: Any, matcher: str | None, objects: str | None) -> Any:
    """Return the verifier of the command's options; the embedded model is checked on its own world's objects."""
    from lvlm_guard.verify import Verifier

    if objects is None and model == "embedded" and getattr(method, "objects", None) is None:
        from lvlm_guard.embedded.world import CLASSES

        return Verifier(matcher, tuple(CLASSES))
    return Verifier(matcher, objects)


def _chosen(trace: Any, texts: list[str], pictures: Any, verifier: Any, method: Any, model: Any) -> list[Any]:
    """Return the answers ranked, with the trace of the best moved to the front."""
    from lvlm_guard.verify import ranked

    order = ranked(trace, texts, pictures, verifier.judge(method, model))
    places = [one.index for one in order]
    trace.steps = [trace.steps[place] for place in places]
    trace.verdicts = [trace.verdicts[place] for place in places]
    return list(order)
