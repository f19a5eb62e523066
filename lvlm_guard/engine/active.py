"""Which model's calls are guarded in this thread, and by which session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_guard.engine.session import Session

ACTIVE: ContextVar[tuple[Any, Session | None]] = ContextVar("lvlm_guard_session", default=(None, None))
"""The model that a generate() call of this thread is about, and its guarded call; None: its calls are plain here."""


@contextmanager
def within(model: Any, session: Session | None) -> Iterator[None]:
    """Guard the calls of a model by a session, or leave them plain."""
    token = ACTIVE.set((model, session))
    try:
        yield
    finally:
        ACTIVE.reset(token)
