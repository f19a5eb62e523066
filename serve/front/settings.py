"""How a front is set up; travels to its processes as one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from lvlm_guard.errors import did_you_mean
from lvlm_guard.proof import CHECKS, KNOBS
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.names import Names

VARIABLE = "LVLM_GUARD_FRONT"
"""Environment variable that holds the settings as JSON."""

KEY = "VLLM_API_KEY"
"""Environment variable of the API key that clients send, vLLM's own name for it."""

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LIMITS = (
    "most_body", "most_bytes", "most_pixels", "most_held", "most_memory", "body_seconds", "fetch_seconds",
    "maskd_seconds", "reading_seconds", "plain_at_once", "guarded_at_once", "readers", "most_answers",
)  # fmt: skip
"""Settings that `lvlm-guard serve --limit NAME=NUMBER` takes."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FrontSettings:
    """What the front has to know.

    Args:
        names: plain names of the model, as the engine serves them.
        guards, checks: methods that the engine was built for; checks of answers of one that nobody guards, instead.
        upstream: of the engine: http://HOST:PORT, the path of its socket, or what `upstream.Upstream` takes.
        upstream_key: that the engine asks for.
        upstream_at_once: chats that it is asked at one time; 0 for any number.
        maskd_url: base address of the matcher service; needed for agla, vote and checks.
        image_hosts: hosts that pictures may be fetched from, as `places.Hosts` reads them.
        origins: of pages whose scripts may ask (CORS).
        most_pictures: in one request; more than 1 needs vLLM's --limit-mm-per-prompt.
        most_body, most_held: bytes of a request's body, and of all requests that are being sent, read and matched.
        most_bytes, most_pixels: of one picture's file, and of the picture.
        most_memory: MiB that reading one request may take.
        body_seconds, fetch_seconds: for a client to send its request, and for one picture from the network.
        maskd_seconds: for the matcher service to answer.
        reading_seconds: for a process to read a request, pictures and all; then it is killed.
        plain_at_once: requests to plain names that are prepared at one time; more are told to come back.
        guarded_at_once: the same of guarded names.
        readers: processes that read requests.
        most_answers: that one is chosen from.
        drop: pieces of a message that are no part of its question, such as the model's image token.
        opened: file whose existence opens the guarded names; "" for always.
        token: of the canary, which asks before.
        special_tokens: `add_special_tokens` of requests that don't say; what `launch.server.special_tokens` finds.

    Raises:
        ServeError: a setting can't be.
        ValidationError: a setting is of another kind.
    """

    names: tuple[str, ...]
    guards: tuple[str, ...]
    checks: tuple[str, ...] = ()
    upstream: str = "http://127.0.0.1:1"
    upstream_key: str = field(default="", repr=False)
    upstream_at_once: Annotated[int, Field(ge=0)] = 0
    maskd_url: str | None = None
    image_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ("*",)
    most_pictures: Count = 1
    most_body: Count = 32 << 20
    most_bytes: Count = 20 << 20
    most_pixels: Count = 40_000_000
    most_held: Count = 512 << 20
    most_memory: Count = 1024
    body_seconds: Seconds = 30
    fetch_seconds: Seconds = 10
    maskd_seconds: Seconds = 15
    reading_seconds: Seconds = 10
    plain_at_once: Count = 256
    guarded_at_once: Count = 128
    readers: Count = 2
    most_answers: Count = 16
    drop: tuple[str, ...] = ("<image>",)
    opened: str = ""
    token: str = field(default="", repr=False)
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, known in [*((guard, KNOBS) for guard in self.guards), *((check, CHECKS) for check in self.checks)]:
            if name not in known:
                raise ServeError(f"{name!r} can't be served. {did_you_mean(name, known)}Known: {', '.join(known)}.")
        if {"agla", "vote", *CHECKS} & {*self.guards, *self.checks} and not self.maskd_url:
            raise ServeError("agla, vote and checks need the matcher service: give its address, maskd_url.")

    @property
    def every_name(self) -> Names:
        """The names of the models, plain, guarded and checked."""
        return Names(self.names, (*self.guards, *self.checks))

    def to_json(self) -> str:
        """Return the settings for the environment variable `VARIABLE`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> FrontSettings:
        """Read the settings that `VARIABLE` holds.

        Raises:
            ServeError: it is missing or holds something else.
        """
        try:
            given: Any = json.loads(environment[VARIABLE])
            return cls(**given)
        except (KeyError, ValueError, TypeError) as error:
            if isinstance(error, ServeError):
                raise
            raise ServeError(
                f"{VARIABLE} does not hold the front's settings ({error}). Start the server with `lvlm-guard serve`, "
                "which sets it, or set it to FrontSettings(...).to_json()."
            ) from error


def limits_of(given: Mapping[str, str]) -> dict[str, Any]:
    """Return settings from what a user wrote as NAME=NUMBER.

    Raises:
        ServeError: there is no such limit, or it takes another number.
    """
    for name in given:
        if name not in LIMITS:
            raise ServeError(f"There is no limit {name!r}. {did_you_mean(name, LIMITS)}Known: {', '.join(LIMITS)}.")
    try:
        made = FrontSettings(("name",), (), **given)  # type: ignore[arg-type]  # pydantic reads the numbers
    except ValidationError as error:
        first = error.errors()[0]
        raise ServeError(f"--limit {first['loc'][0]}={first['input']}: {first['msg']}.") from error
    return {one.name: getattr(made, one.name) for one in fields(made) if one.name in given}
