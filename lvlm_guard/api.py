"""The front door: guard a model and its processor, and take the guard off again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lvlm_guard.combined import Combined
from lvlm_guard.engine.method import Method
from lvlm_guard.engine.session import EXECUTIONS, Execution
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import KnobError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.knobs import no_knob
from lvlm_guard.methods import DEFAULT
from lvlm_guard.pair import guard_off, install
from lvlm_guard.proving.proofs import Check, proven

if TYPE_CHECKING:
    from collections.abc import Callable

    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.guarded import AnswerCheck

M = TypeVar("M")
P = TypeVar("P")


Given = str | Method | type[Method] | Sequence[Method]


def parts_of(name: str) -> list[str]:
    """Return the names of the methods that a name stands for: several where it is a combination, "agla+rudder"."""
    from lvlm_guard.methods import REGISTRY

    return [name] if name in REGISTRY.names() else [part.strip() for part in name.split("+")]


def combined(name: str, part: Callable[[str], Method]) -> Method:
    """Return the method that a name stands for, or their combination, of what `part` makes of each part's name."""
    found = [part(each) for each in parts_of(name)]
    return found[0] if len(found) == 1 else Combined(tuple(found))


def resolve(method: Given, knobs: dict[str, Any] | None = None) -> Method:
    """Return a method from its name, its class, or itself; "agla+rudder", or a list of methods, is a combination.

    Raises:
        UnknownNameError: no method has this name.
        KnobError: it has no such knob, a knob's value is out of range, or methods that don't combine.
    """
    from lvlm_guard.methods import REGISTRY

    several = isinstance(method, str) and len(parts_of(method)) > 1
    if knobs and several:
        raise KnobError(
            f"Knobs were given beside {method!r}, whose parts may share their names: give the methods themselves, "
            "such as [methods.AGLA(alpha=1.0), methods.RUDDER(relative=True)]."
        )
    if knobs and isinstance(method, list | tuple):
        raise KnobError("Knobs were given beside a list of methods: give them to the methods themselves.")
    if knobs and isinstance(method, Method):
        raise KnobError(
            f"Knobs were given beside a finished {type(method).__name__}: write "
            f"methods.{type(method).__name__}({', '.join(f'{k}=...' for k in knobs)}) instead."
        )
    if isinstance(method, list | tuple):
        return Combined(tuple(map(resolve, method)))
    if isinstance(method, str) and several:
        return combined(method, resolve)
    if isinstance(method, Method):
        return method
    kind = REGISTRY.get(method) if isinstance(method, str) else method
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise KnobError(
            f"{method!r} is no decoding method: give a registered name ({', '.join(REGISTRY.names())}), an instance "
            "such as methods.AGLA(alpha=1.0), or guard=False for a plain call."
        )
    names = [f.name for f in dataclasses.fields(kind) if f.init]  # type: ignore[arg-type]  # every method is one
    for knob, value in (knobs or {}).items():
        if knob not in names:
            raise no_knob(kind.name, knob, value, names)
    return kind(**(knobs or {}))


def guard(
    model: M,
    processor: P,
    method: Given = DEFAULT,
    *,
    execution: Execution = "auto",
    check: Check = "unknown",
    **knobs: Any,
) -> tuple[M, P]:
    """Guard a model and its processor, in place: `generate()` works as before and hallucinates less.

    Args:
        model: a transformers model of a supported family; PEFT-wrapped, quantised, compiled and
            dispatched ones too.
        processor: the processor that belongs to it.
        method: a registered name, such as "agla" for the paper's, a method with its knobs, such as
            `methods.AGLA(alpha=1.5)`, or several that act together, "agla+rudder" or a list: at most one may assemble
            logits. `methods.DEFAULT` where none is given, which docs/which_method.md chooses by measurement.
        execution: how the method's branches are run: "auto", "lazy" (only when they matter) or
            "batched" (stacked with the global one). The tokens are the same.
        check: whether to prove first that a second branch is right on this model: "always", "unknown" (where neither
            the table of `lvlm-guard doctor --families` nor a proof kept on this machine knows it), "never". It costs a
            dozen answers of four tokens.
        **knobs: knobs of a method given by name.

    Returns:
        The same two objects. `model.generate(**inputs, guard=False)` is a plain call,
        `guard=methods.AGLA(alpha=1.0)` one with other knobs, and `guard_execution=` one run otherwise.
        `verify=True` (or a `lvlm_guard.verify.Verifier`) checks each object that the answer names against the
        picture: the call returns generate()'s output object, with the verdicts in
        `out.guard.extra["verdicts"]`.

    Raises:
        UnsupportedModelError: the model can't be guarded, or the processor belongs to another family.
        UnknownNameError, KnobError: see `resolve`.
    """
    if execution not in EXECUTIONS:
        raise KnobError(f"execution is {execution!r}: give 'auto', 'lazy' or 'batched'.")
    chosen = resolve(method, knobs)
    inner: Any = _innermost(model)
    if "generate" in vars(inner):
        raise UnsupportedModelError(
            f"This {plain_class(inner).__name__} has a generate of its own on the object (from a repository with a "
            "custom_generate folder, or a library that patches models), which hides the guarded one. Take it off first "
            "(`del model.generate`), or load without trust_remote_code."
        )
    chosen.check_model(inner)
    family = proven(Family.of(inner, processor), inner, processor, check)
    # nothing raises from here on, so that a call that fails leaves the pair guarded as it was
    pair: Any = processor  # the two change class in place, which no type can say
    unguard(inner)
    unguard(pair)
    install(inner, pair, family, chosen, execution, resolve=resolve, checks=_checks)
    return model, processor


def _checks(asked: Any, call: Call, method: Method) -> AnswerCheck:
    from lvlm_guard.verify.check import Verifier

    own = hasattr(asked, "bound") and not isinstance(asked, type)  # the class itself is no check
    found: AnswerCheck = (asked if own else Verifier.of(asked)).bound(call, method)
    return found


def unguard(thing: M) -> M:
    """Take the guard off a model or a processor, in place; one without a guard is left as it is."""
    inner = _innermost(thing)
    guard_off(inner)
    return thing


def _innermost(model: Any) -> Any:
    """Return the transformers model within PEFT's and torch.compile's wrappers."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = model.get_base_model()
        else:
            return model


__all__ = ["guard", "resolve", "unguard"]
