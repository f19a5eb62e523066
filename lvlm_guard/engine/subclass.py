"""A dynamic subclass on top of an object's class, as `torch.nn.utils.parametrize` makes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar


def once_per_class(make: Callable[[type[Any]], type[Any]]) -> Callable[[type[Any]], type[Any]]:
    """Return `make`, which subclasses a class, such that a class gets one subclass, named as itself.

    The name stays, because `save_pretrained` and error messages of transformers go by it.
    """
    made: dict[type[Any], type[Any]] = {}

    @functools.wraps(make)
    def subclass(base: type[Any]) -> type[Any]:
        if base not in made:
            new = make(base)
            new.__name__, new.__qualname__, new.__module__ = base.__name__, base.__qualname__, base.__module__
            new.guarded_from, new.guarded_by = base, subclass
            setattr(new, "__reduce_ex__", _reduced)  # noqa: B010 - typeshed has another signature
            made[base] = new
        return made[base]

    return subclass


F = TypeVar("F", bound=Callable[..., Any])


def shown_with(below: Callable[..., Any]) -> Callable[[F], F]:
    """Show a method's own keyword arguments among those of the method that it stands before, and both documentations.

    `inspect.signature` and `help` then tell what a caller may pass, as they did before.
    """

    def showing(method: F) -> F:
        shown = inspect.signature(below)
        own = [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
        told: Any = method
        if own[0].name in shown.parameters:  # a class that is guarded already, guarded once more
            told.__signature__, told.__doc__ = shown, below.__doc__
            return method
        theirs = list(shown.parameters.values())
        ends = next((i for i, p in enumerate(theirs) if p.kind is p.VAR_KEYWORD), len(theirs))
        told.__signature__ = shown.replace(parameters=[*theirs[:ends], *own, *theirs[ends:]])
        doc = inspect.cleandoc(method.__doc__ or "")
        told.__doc__ = f"{doc}\n\n{below.__qualname__} of transformers:\n\n{inspect.getdoc(below) or ''}".rstrip()
        return method

    return showing


def signed_as(below: Callable[..., Any]) -> Callable[[F], F]:
    """As `functools.wraps`, with a signature that is read once: generate() asks for it in each call."""

    def signed(method: F) -> F:
        told: Any = functools.wraps(below)(method)
        told.__signature__ = inspect.signature(below)
        wrapped: F = told
        return wrapped

    return signed


def _reduced(self: Any, protocol: Any) -> Any:
    """Return what pickle and copy make the object from: its class, which no module holds, is made again."""
    makers: list[Any] = []
    kind: Any = type(self)
    while "guarded_from" in vars(kind):
        makers.insert(0, kind.guarded_by)
        kind = kind.guarded_from
    reduce = kind.__reduce_ex__
    if reduce is _reduced:  # the caller's subclass of a guarded class
        reduce = object.__reduce_ex__
    _, (_, *given), *rest = reduce(self, max(int(protocol), 2))
    return _anew, (makers, kind, *given), *rest


def _anew(makers: list[Any], kind: type[Any], *given: Any) -> Any:
    for make in makers:
        kind = make(kind)
    return kind.__new__(kind, *given)


def plain_class(thing: Any) -> type[Any]:
    """Return the class of an object without the guard."""
    kind = type(thing)
    plain: type[Any] = kind.__dict__.get("guarded_from", kind)
    return plain
