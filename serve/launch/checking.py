"""A server of checks: the front and a matcher service before an endpoint that somebody else runs; no vLLM."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
from PIL import Image

from lvlm_guard.errors import KnobError, did_you_mean
from lvlm_guard.matching.vocabulary import claim_about
from lvlm_guard.proof import CHECKS
from lvlm_guard.serve.errors import MaskdError, ServeError
from lvlm_guard.serve.front.names import Names
from lvlm_guard.serve.launch.child import Keeper
from lvlm_guard.serve.launch.command import FRONTS, UPSTREAM_KEY
from lvlm_guard.serve.launch.parts import Parts, Ready, Say, Signals
from lvlm_guard.serve.maskd.client import MaskdClient
from lvlm_guard.serve.settings import ServeSettings
from lvlm_guard.serve.vote.ballot import served_vocabulary


class CheckingServer(Parts):
    """Checks of the answers of an endpoint; see `Parts`, whose `stack` closes what was opened.

    Raises:
        GuardError: the server can't be started so.
    """

    def __init__(self, settings: ServeSettings, say: Say, stack: ExitStack, keeper: Keeper, signals: Signals) -> None:
        super().__init__(settings, say, keeper, signals)
        self._url = _address(settings.upstream or "")
        self._checks = CHECKS if settings.guards is None else tuple(dict.fromkeys(settings.guards))
        for check in self._checks:
            if check not in CHECKS:
                near = did_you_mean(check, CHECKS)
                raise ServeError(
                    f"Nothing inside an --upstream can be guarded, so {check!r} can't be served. {near}What can be "
                    f"checked of its answers: {', '.join(CHECKS)}."
                )
        if not self._checks:
            raise ServeError(f"No check is named: give --guards some of {', '.join(CHECKS)}, or leave it out.")
        for option in settings.passed.names:
            if option not in FRONTS:
                raise ServeError(f"--{option} is an option of vLLM, and none is started before an --upstream.")
        self._key = os.environ.get(UPSTREAM_KEY, "")
        self._names = Names(settings.names or _listed(self._url, self._key), self._checks)
        self._settle(stack, embedded=settings.matcher == "embedded")

    def _open(self, ready: Callable[[Ready], None]) -> None:
        given = self._given
        maskd, version = self._start_matcher(embedded=False)
        asyncio.run(_look(maskd))
        front = {
            "names": self._names.plain,
            "guards": (),
            "checks": self._checks,
            "upstream": self._url,
            "upstream_key": self._key,
            "upstream_at_once": max(1, given.upstream_at_once // given.front_workers),
            "maskd_url": maskd,
        }
        url = self._start_front(front, "The front is still starting")
        ready(Ready(url, self._names.all, self._checks, maskd, version, os.getpid()))


def _address(url: str) -> str:
    """Return the address of an endpoint as OpenAI's clients take it, without a blank or a slash at its end."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise KnobError(f"--upstream {url!r} is no address: write it as https://HOST/v1, as OpenAI's clients take it.")
    if parts.username or parts.password:
        raise KnobError(f"--upstream is seen by every user of this machine: put the key into {UPSTREAM_KEY}.")
    return url.strip().rstrip("/")


def _listed(url: str, key: str) -> tuple[str, ...]:
    """Return the names of an endpoint's models; raises `ServeError` where it does not list them."""
    place = url if urlsplit(url).path.strip("/") else url + "/v1"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(place + "/models", headers=headers, timeout=30, trust_env=False)
        if answer.status_code == 200 and (names := tuple(str(card["id"]) for card in answer.json()["data"])):
            return names
        why = f"answers {answer.status_code} and names no models"
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        why = f"lists no models ({type(error).__name__})"
    raise ServeError(
        f"{place}/models {why}. Is the address right, and its key in {UPSTREAM_KEY}? If it lists none: name what it "
        "serves, --served-model-name NAME."
    )


async def _look(maskd: str) -> None:
    """Ask about a grey picture; raises `ServeError` where the matcher can't say how far a picture supports a claim."""
    held = io.BytesIO()
    Image.new("RGB", (96, 96), (128, 128, 128)).save(held, "PNG")
    client = MaskdClient(maskd, timeout=120)
    try:
        await client.scores(held.getvalue(), [claim_about(served_vocabulary().names[0])])
    except MaskdError as error:
        raise ServeError(f"The matcher can't check answers. {error}") from error
    finally:
        await client.aclose()
