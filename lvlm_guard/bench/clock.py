"""Where a guarded call's time goes: seconds spent in some methods of a class, its outermost calls alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Clock:
    """Adds up seconds.

    Args:
        now: the time, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._now, self._runs = now, False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is added, unless one that this clock times has called it."""

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._runs:
                return call(*args, **kwargs)
            self._runs, began = True, self._now()
            try:
                return call(*args, **kwargs)
            finally:
                self._runs = False
                self.seconds += self._now() - began

        return timed


@contextmanager
def clocked(owner: type[Any], names: Sequence[str], now: Callable[[], float]) -> Iterator[Clock]:
    """Time a class's methods of these names, those that it has, as long as this lasts; in one thread."""
    clock, own = Clock(now), {name: vars(owner)[name] for name in names if name in vars(owner)}
    has = [name for name in names if hasattr(owner, name)]
    for name in has:
        setattr(owner, name, clock.around(getattr(owner, name)))
    try:
        yield clock
    finally:
        for name in has:
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)
