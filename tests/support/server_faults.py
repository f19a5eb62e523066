"""Faults of a server, for `OpenAIEndpoint.faulty`: each makes another reply of a request and its reply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openai_endpoint import Reply, Request

SOON = {"Retry-After": "0.01"}
KEPT = ".*the same command goes on from there"


def status(code: int, headers: dict[str, str] | None = None) -> Any:
    """No answer but an error, to be tried again soon."""
    told = {"error": {"message": "out of order", "type": "error", "code": code}}
    return lambda *_: Reply(code, told, headers or SOON)


def web_page(*_: Any) -> Reply:
    """What a proxy before a server says."""
    return Reply(200, "<html><body>Sign in</body></html>", kind="text/html")


def once(place: int, fault: Any) -> Any:
    """A fault of one request alone."""
    return lambda request, reply: fault(request, reply) if request.number == place else reply


def after(first: int, fault: Any) -> Any:
    """A fault that begins at a request."""
    return lambda request, reply: reply if request.number < first else fault(request, reply)


def choice(**changes: Any) -> Any:
    """An answer with some fields changed."""

    def fault(_: Request, reply: Reply) -> Reply:
        return replace(reply, body=reply.body | {"choices": [reply.body["choices"][0] | changes]})

    return fault


def without_proof(request: Request, reply: Reply) -> Reply:
    """A guarded answer that does not say so."""
    if request.body["model"] == "embedded":  # a plain answer needs none, and may come after the fault began
        return reply
    body = {name: value for name, value in reply.body.items() if name != "lvlm_guard"}
    return replace(reply, headers={}, body=body)


def guard_off(_: Request, reply: Reply) -> Reply:
    """An answer that says it is not guarded."""
    return replace(reply, headers={"X-AGLA": "off"}, body=reply.body | {"lvlm_guard": None})


def told_knobs(**knobs: Any) -> Any:
    """A guarded answer that tells other knobs, in its body alone."""

    def fault(_: Request, reply: Reply) -> Reply:
        guard = reply.body["lvlm_guard"]
        if guard["method"] is None:
            return reply
        return replace(reply, headers={}, body=reply.body | {"lvlm_guard": guard | {"knobs": guard["knobs"] | knobs}})

    return fault
