"""Which ways into the server are open, and who may take them.

vLLM has many more that generate (/v1/completions, /v1/responses, /v1/messages, /inference/..., batches, tokenizing,
loading of adapters); each would be a way around the guard.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import Scope

from lvlm_guard.serve.errors import Refused

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
READY, METRICS = "/ready", "/metrics"

OPEN = frozenset({("GET", "/health"), ("GET", "/ping"), ("GET", "/version"), ("GET", "/metrics"), ("GET", READY)})
"""Routes without a key, as in vLLM."""

KEYED = frozenset({("POST", CHAT), ("GET", MODELS)})
"""Routes that need the key, where there is one."""


def route_of(scope: Scope) -> tuple[str, str]:
    """Return method and path of a request that may go on.

    Raises:
        Refused: 404, the way is closed; 405, it is open to another method.
    """
    root, path = scope.get("root_path", ""), scope["path"]
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    route = scope["method"], path
    known = OPEN | KEYED
    if route in known:
        return route
    if any(path == other for _, other in known):
        raise Refused(405, f"{path} does not take {route[0]:.20}.")
    paths = ", ".join(sorted({path for _, path in known}))
    raise Refused(404, f"{path[:80]!r} is not served: every way around the guard is closed. Served: {paths}.")


class Key:
    """The key that requests need; "" for none."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest() if key else None

    def check(self, scope: Scope) -> None:
        """Raise `Refused`, 401, for a request without the key; nearly right ones take as long as wrong ones."""
        if self._digest is None:
            return
        given = next((value for name, value in scope["headers"] if name.lower() == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        right = hmac.compare_digest(hashlib.sha256(token).digest(), self._digest)
        if not right or scheme.lower() != b"bearer":
            raise Refused(401, "The API key is missing or wrong: send 'Authorization: Bearer KEY'.")
