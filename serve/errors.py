"""What can go wrong in the server, one class a kind; all are `GuardError`s."""

from __future__ import annotations

from lvlm_guard.errors import GuardError

REASONS = {401: "key", 404: "route", 405: "route", 408: "slow", 413: "size", 422: "fetching", 503: "busy"}
"""What a status stands for in metrics, where nothing else is said."""


class ServeError(GuardError):
    """The server can't be started, or one of its parts can't do its work."""


class WireError(ServeError):
    """A mask or scores on the wire are damaged, too large, or of another kind."""


class MaskdError(ServeError):
    """The matcher service gave no mask or no scores.

    Args:
        message: what is wrong and what to do.
        retry_after: seconds after which asking again may help; None where it would fail again.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(ServeError):
    """A request that is not answered.

    Args:
        status: of the HTTP answer, 400 to 599.
        message: what is wrong, why, and what to do; the client sees it.
        retry_after: seconds after which asking again may help, sent as `Retry-After`.
        reason: one word for the metrics; "": what the status stands for.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or REASONS.get(status, "request")
        self.status = status
        self.message = message
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Refused], tuple[int, str, float | None, str]]:
        """Let it pass from one process to another."""
        return Refused, (self.status, self.message, self.retry_after, self.reason)
