"""Answers of `lvlm-guard generate`: plain, guarded, verified, chosen among several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from lvlm_guard.cli.options import Execution, MaxNewTokens, objects_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.trace import GuardTrace

_VERIFY = Option("--verify", help="Mark named objects that the picture may not hold.")
_BEST_OF = Option(min=1, help="Sample so many answers and give the best by model and verifier.")
_VERIFIER = Option(help="Matcher of --verify and --best-of; default: the method's.", metavar="NAME")
_OBJECTS = Option(help="List of what is verified; default: the method's, else COCO's.", metavar="FILE")


@dataclass(frozen=True)
class Asking:
    """How a prompt is answered."""

    compare: Annotated[bool, Option("--compare", help="Answer plainly too, and show both.")] = False
    verify: Annotated[bool, _VERIFY] = False
    best_of: Annotated[int, _BEST_OF] = 1
    verifier: Annotated[str | None, _VERIFIER] = None
    objects: Annotated[str | None, _OBJECTS] = None
    max_new_tokens: MaxNewTokens = 64
    sample: Annotated[bool, Option("--sample", help="Sample instead of taking the likeliest token.")] = False
    temperature: Annotated[float, Option(min=1e-3, help="Of --sample.")] = 1.0
    seed: Annotated[int, Option(help="Of --sample; the plain answer starts from it too.")] = 0
    execution: Execution = "auto"

    @property
    def settings(self) -> dict[str, Any]:
        """What generate() is given, for a plain answer too."""
        told = {"max_new_tokens": self.max_new_tokens, "do_sample": self.sample or self.best_of > 1}
        heat = {"temperature": self.temperature}
        return told | (heat if told["do_sample"] else {"temperature": None, "top_p": None, "top_k": None})

    def judge(self, model: str, method: Any) -> Any:
        """Return the verifier, if one is asked; the embedded model is checked on its own world's objects."""
        from lvlm_guard.verify import Verifier

        if not self.verify and self.best_of == 1:
            return None
        own = getattr(method, "objects", None) is not None
        return Verifier(self.verifier, self.objects if own else objects_of(self.objects, model))


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
    loaded: tuple[Any, Any], method: Any, pictures: Sequence[Image], prompt: str, asking: Asking, verifier: Any
) -> list[Answer]:
    """Return the guarded answer, after the plain one if asked; both start from the same seed.

    Args:
        loaded: a model that is not guarded yet, and its processor.
        verifier: of the guarded answer; None for none.

    Raises:
        GuardError: the model, the pictures or the prompt can't be guarded.
    """
    from transformers import set_seed

    from lvlm_guard.api import guard
    from lvlm_guard.pretrained import ask, spoken
    from lvlm_guard.verify import ranked

    model, processor = guard(*loaded, method, execution=asking.execution)
    settings, made = asking.settings, []
    for plain in (True, False) if asking.compare else (False,):
        inputs = ask(processor, [pictures], [prompt]).to(model.device, dtype=model.dtype)
        asked = [view.text for view in inputs["guard_views"].views()]
        more: dict[str, Any] = {} if verifier is None else {"verify": verifier}
        more |= {"num_return_sequences": asking.best_of} if asking.best_of > 1 else {}
        if plain:
            del inputs["guard_views"]
            more = {"guard": False}
        set_seed(asking.seed)
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
        if asking.best_of > 1:
            order = ranked(trace, texts, pictures, verifier.judge(method, model))
            places = [one.index for one in order]
            trace = trace.only(places)
            others, best = [(one.score, texts[one.index]) for one in order], places[0]
            rows[best] = rows[best][: len(trace.steps[0])]  # behind its end it was filled up to the longest
        made.append(Answer(method.name, texts[best], rows[best], seconds, asked, trace, others))
    return made
