"""How a front is set up; travels to vLLM's process as one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lvlm_guard.errors import did_you_mean
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.requests import KNOBS

VARIABLE = "LVLM_GUARD_FRONT"
"""Environment variable that holds the settings as JSON: vLLM builds middleware without arguments."""

KEY = "VLLM_API_KEY"
"""Environment variable of the API key, vLLM's own; `--api-key` is not visible to middleware."""


@dataclass(frozen=True)
class FrontSettings:
    """What the front has to know.

    Args:
        names: plain names of the model, as vLLM serves them.
        guards: methods that the engine was built for.
        maskd_url: base address of the matcher service; needed for agla and vote.
        image_hosts: hosts that pictures may be fetched from, as `places.Hosts` reads them.
        most_pictures: in one request; more than 1 needs vLLM's --limit-mm-per-prompt.
        most_body: bytes of a request's body.
        most_bytes: of one picture's file.
        most_pixels: of one picture.
        body_seconds: for a client to send its request.
        fetch_seconds: for one picture from the network.
        maskd_seconds: for the matcher service to answer.
        at_once: requests that are being read and matched at one time; more are told to come back.
        decoded_at_once: pictures that are being decoded at one time.
        drop: pieces of a message that are no part of its question, such as the model's image token.
        special_tokens: `add_special_tokens` of requests that don't say; what `template.special_tokens` finds.

    Raises:
        ServeError: a setting can't be.
    """

    names: tuple[str, ...]
    guards: tuple[str, ...]
    maskd_url: str | None = None
    image_hosts: tuple[str, ...] = ()
    most_pictures: int = 1
    most_body: int = 32 << 20
    most_bytes: int = 20 << 20
    most_pixels: int = 40_000_000
    body_seconds: float = 30
    fetch_seconds: float = 10
    maskd_seconds: float = 15
    at_once: int = 128
    decoded_at_once: int = 4
    drop: tuple[str, ...] = ("<image>",)
    opened: str = ""
    token: str = field(default="", repr=False)
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))
            elif isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ServeError(f"The front's {one.name} is {value!r}: give a number above 0.")
        for guard in self.guards:
            if guard not in KNOBS:
                raise ServeError(
                    f"The guard {guard!r} can't be served. {did_you_mean(guard, KNOBS)}Known: {', '.join(KNOBS)}."
                )
        if {"agla", "vote"} & set(self.guards) and not self.maskd_url:
            raise ServeError("agla and vote need the matcher service: give its address, maskd_url.")

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
