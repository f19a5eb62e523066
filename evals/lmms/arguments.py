"""`--model_args` of the model: read as text, checked by name and type, refused where they mean nothing.

lmms-eval turns `revision=12e4567` into the number infinity, and takes any name. We read the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard import __version__, methods
from lvlm_guard.engine.session import EXECUTIONS
from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean
from lvlm_guard.evals.decoders.decoder import REFERENCE
from lvlm_guard.evals.infer.record import code_digest
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.knobs import defaults_of, read_knob
from lvlm_guard.ranks import Place

EXAMPLE = "pretrained=llava-hf/llava-1.5-7b-hf,method=agla,alpha=2"
_NEXT = re.compile(r",(?=\s*[A-Za-z_][\w.]*\s*=)")  # a comma before a name: values may hold commas

SETTINGS = {"pretrained": "model", "batch_size": "batch"} | {n: n for n in ("device", "dtype", "revision", "execution")}
"""Argument -> the field of `Settings` that it is."""
OWN = ("pretrained", "method", "device", "dtype", "revision", "execution", "batch_size", "seed", "store", "code")
LEAST = {"batch_size": 1, "seed": 0}  # of what is a number; the others are texts


@dataclass(frozen=True)
class Arguments:
    """All that decides the answers, but for the documents and their generation arguments."""

    settings: Settings  # of a run of our own with this method alone; its batch: documents of one generate() call
    method: str  # a registered one, or "greedy" for the plain model
    seed: int = 0  # of the first time that a document is asked
    store: str = ""  # folder in which finished answers are kept, and found again after any end; "" for none
    code: str = ""  # "" or `code_name()`, so that a cache that is keyed by these arguments can't mix versions


def code_name() -> str:
    """Return the version and a digest of the running code, for `code=`."""
    return f"v{__version__}-{code_digest()}"


def parse(text: str) -> dict[str, str]:
    """Return the names and texts of "name=value,name=value"; a value may hold commas. Raises `KnobError`."""
    found: dict[str, str] = {}
    for part in _NEXT.split(text.strip()) if text.strip() else ():
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise KnobError(f"--model_args {part!r} is no NAME=VALUE. An example: {EXAMPLE}.")
        if name in found:
            raise KnobError(f"--model_args has {name!r} twice: {found[name]!r} and {value.strip()!r}. Give it once.")
        found[name] = value.strip()
    return found


def read(given: Mapping[str, Any]) -> Arguments:
    """Return arguments from texts, or from values as Python has them. A knob may be written with its method
    ("vcd.seed=3"), and must be where it has the name of an argument. Raises `UnknownNameError` (no such method), or
    `KnobError` of the argument or knob that is unknown, missing or wrong."""
    known = [REFERENCE, *methods.REGISTRY.names()]
    for name in ("pretrained", "method"):
        if not given.get(name):
            there = "" if name == "pretrained" else f" Methods: {', '.join(known)}."
            raise KnobError(f"--model_args lacks {name}=. An example: {EXAMPLE}.{there}")
    method = _own("method", given["method"])
    if method not in known:
        raise UnknownNameError(
            f"No method is called {method!r}. {did_you_mean(method, known)}Known: {', '.join(known)}; "
            f"{REFERENCE!r} is the plain model. Sampling is asked for by --gen_kwargs do_sample=True,temperature=1."
        )
    defaults = {} if method == REFERENCE else defaults_of(method)
    own, knobs = dict[str, Any](), dict[str, Any]()
    for name, value in given.items():
        knob = name.removeprefix(f"{method}.")
        if name in OWN:
            own |= {} if value is None else {name: _own(name, value)}
        elif knob in defaults:
            text = isinstance(value, str)
            knobs[knob] = read_knob(knob, value.strip(), defaults[knob]) if text else value
        else:
            near = did_you_mean(name.rpartition(".")[2], [*OWN, *defaults])
            told = f"Arguments: {', '.join(OWN)}. Knobs of {method}: {', '.join(defaults) or 'none'}."
            strange = f"--model_args has {name!r}, which is no argument of lvlm_guard and no knob of {method!r}"
            raise KnobError(f"{strange}. {near}{told}")
    made = {SETTINGS[name]: own.pop(name) for name in list(own) if name in SETTINGS}
    made["device"], knobbed = Place.here().device(made.get("device", "auto")), {method: knobs} if knobs else {}
    settings = Settings(**made, tasks=(), methods=(method,), knobs=knobbed, controls=False, seeds=1)
    return Arguments(settings, **own)


def _own(name: str, value: Any) -> Any:
    if name in LEAST:
        if isinstance(value, str) and re.fullmatch(r"\d+", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < LEAST[name]:
            hint = "" if name == "seed" else " It is not searched for: a batch can change answers in half precision."
            raise KnobError(f"{name} is {value!r}: give a whole number of at least {LEAST[name]}.{hint}")
        return value
    if not isinstance(value, str):
        raise KnobError(f"{name} is {value!r}, a {type(value).__name__}: give a text, in one --model_args string.")
    if name == "execution" and value not in EXECUTIONS:
        raise KnobError(f"execution is {value!r}: give {', '.join(EXECUTIONS)}.")
    if name == "revision" and re.fullmatch(r"[+-]?(inf(inity)?|\d+e\d{3,})", value, re.IGNORECASE):
        told = "which lmms-eval's cache takes for the number infinity: give more digits of the commit, or a tag."
        raise KnobError(f"revision is {value!r}, {told}")
    if name == "code" and value not in ("", code_name()):
        raise KnobError(f"code is {value!r}, but the code that runs is {code_name()}: no cache may mix both.")
    return value
