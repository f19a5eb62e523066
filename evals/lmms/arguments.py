"""`--model_args` of the model: read as text, checked by name and type, refused where they mean nothing.

lmms-eval turns `revision=12e4567` into the number infinity, and takes any name. We read the text itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard import __version__, methods
from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean
from lvlm_guard.evals.decoders.decoder import REFERENCE
from lvlm_guard.evals.spec.settings import Settings

EXAMPLE = "pretrained=llava-hf/llava-1.5-7b-hf,method=agla,alpha=2"
_NEXT = re.compile(r",(?=\s*[A-Za-z_][\w.]*\s*=)")  # a comma before a name: values may hold commas


@dataclass(frozen=True)
class Arguments:
    """All that decides the answers, but for the documents and their generation arguments.

    Args:
        pretrained: "embedded", a folder, or a hub id.
        method: a registered method, or "greedy" for the plain model.
        knobs: of the method.
        device: "auto", "cpu", "cuda", ...; with several processes each takes the GPU of its rank.
        dtype: "auto", "float32", "bfloat16", "float16".
        revision: of a hub id: a branch, a tag or a commit; "" for the newest.
        execution: how branches are run: the same tokens, another cost.
        batch_size: documents of one generate() call. Published tables use 1.
        seed: of whatever is random.
        store: folder in which finished answers are kept, and found again after any end; "" for none.
        code: "" or what `code_name()` says, so that a cache that is keyed by these arguments can't mix versions.
    """

    pretrained: str
    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    revision: str = ""
    execution: str = "auto"
    batch_size: int = 1
    seed: int = 0
    store: str = ""
    code: str = ""

    def settings(self) -> Settings:
        """Return them as settings of a run of our own."""
        return Settings(
            model=self.pretrained,
            tasks=(),
            methods=(self.method,),
            knobs={self.method: self.knobs} if self.knobs else {},
            controls=False,
            seeds=1,
            batch=self.batch_size,
            device=_own_device(self.device),
            dtype=self.dtype,
            execution=self.execution,
            revision=self.revision,
        )


TEXTS = ("pretrained", "method", "device", "dtype", "revision", "execution", "store", "code")
NUMBERS = {"batch_size": 1, "seed": 0}  # with their least value


def code_name() -> str:
    """Return the version and a digest of the running code, for `code=`."""
    from lvlm_guard.evals.infer.identity import code_digest

    return f"v{__version__}-{code_digest()}"


def model_args(pretrained: str, method: str, **more: Any) -> str:
    """Return a `--model_args` text with the running code in it, as lmms-eval's `--use_cache` needs."""
    given = {"pretrained": pretrained, "method": method, **more, "code": code_name()}
    texts = {name: json.dumps(v) if isinstance(v, list | tuple | dict) else str(v) for name, v in given.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items())


def parse(text: str) -> dict[str, str]:
    """Return the names and texts of "name=value,name=value"; a value may hold commas.

    Raises:
        KnobError: a part has no "=", or a name comes twice.
    """
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
    """Return arguments from texts, or from values as Python has them.

    A knob may be written with its method ("vcd.seed=3"), and must be where it has the name of an argument.

    Raises:
        UnknownNameError: no such method.
        KnobError: no such argument or knob, one is missing, or a value is of the wrong type.
    """
    for name in ("pretrained", "method"):
        if not given.get(name):
            known = "" if name == "pretrained" else f" Methods: {', '.join(_methods())}."
            raise KnobError(f"--model_args lacks {name}=. An example: {EXAMPLE}.{known}")
    method = _text("method", given["method"])
    knobs = _knobs_of(method)
    texts = {name: _text(name, given[name]) for name in TEXTS if given.get(name) is not None}
    numbers = {name: _whole(name, given[name], least) for name, least in NUMBERS.items() if given.get(name) is not None}
    own = {}
    for name, value in given.items():
        if name in TEXTS or name in NUMBERS:
            continue
        knob = name.removeprefix(f"{method}.")
        if knob not in knobs:
            raise KnobError(_unknown(name, method, knobs))
        own[knob] = _knob(knob, value, knobs[knob])
    _check(texts)
    chosen: dict[str, Any] = {**texts, **numbers, "knobs": own}
    return Arguments(**chosen)


def _methods() -> list[str]:
    return [REFERENCE, *methods.REGISTRY.names()]


def _knobs_of(method: str) -> dict[str, Any]:
    """Return the knobs of a method with their defaults."""
    if method == REFERENCE:
        return {}
    if method not in methods.REGISTRY.names():
        raise UnknownNameError(
            f"No method is called {method!r}. "
            + did_you_mean(method, _methods())
            + f"Known: {', '.join(_methods())}; {REFERENCE!r} is the plain model. Sampling is asked for by "
            "--gen_kwargs do_sample=True,temperature=1."
        )
    return {f.name: f.default for f in dataclasses.fields(methods.REGISTRY.get(method)) if f.init}


def _unknown(name: str, method: str, knobs: Mapping[str, Any]) -> str:
    known = [*TEXTS, *NUMBERS, *knobs]
    return (
        f"--model_args has {name!r}, which is no argument of lvlm_guard and no knob of {method!r}. "
        + did_you_mean(name.rpartition(".")[2], known)
        + f"Arguments: {', '.join([*TEXTS, *NUMBERS])}. Knobs of {method}: {', '.join(knobs) or 'none'}."
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise KnobError(
            f"{name} is {value!r}, a {type(value).__name__}: give a text. (lmms-eval makes a number of what looks like "
            "one; in one --model_args string it is read as the text it is.)"
        )
    return value


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d+", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        hint = " It is not searched for: a batch can change answers in half precision." if name == "batch_size" else ""
        raise KnobError(f"{name} is {value!r}: give a whole number of at least {least}.{hint}")
    return value


def _knob(name: str, value: Any, default: Any) -> Any:
    """Return a knob's text as a value of the type of its default; one without takes a number, a list, or text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise KnobError(f"{name} is {text!r}: give true or false.")
        return text.lower() == "true"
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise KnobError(f"{name} is {text!r}: give {kind}, such as {default}.") from None
    if text[:1] in ("[", "{", '"'):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise KnobError(f'{name} is {text!r}, which is no JSON ({error}): write ["dog", "cat"].') from error
        return tuple(found) if isinstance(found, list) else found
    return None if text.lower() == "none" else text


def _check(texts: Mapping[str, str]) -> None:
    from lvlm_guard.engine.session import EXECUTIONS

    if texts.get("execution", "auto") not in EXECUTIONS:
        raise KnobError(f"execution is {texts['execution']!r}: give {', '.join(EXECUTIONS)}.")
    if "revision" in texts and _as_number(texts["revision"]) in (math.inf, -math.inf):
        raise KnobError(
            f"revision is {texts['revision']!r}, which lmms-eval reads as the number infinity, so that its cache could "
            "take the answers of one revision for another's: give more digits of the commit, or a tag."
        )
    if texts.get("code") and texts["code"] != code_name():
        raise KnobError(
            f"code is {texts['code']!r}, but the code that runs is {code_name()!r}: a cache keyed by these arguments "
            "would mix the answers of both. Write the arguments anew: lvlm_guard.evals.lmms.arguments.model_args(...)."
        )


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _own_device(device: str) -> str:
    """Return the GPU of this process where several run side by side, else the device as it was given."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
