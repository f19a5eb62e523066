"""Start the matcher service: one process, or several that share a socket.

Each worker process has a matcher, a queue and a memory of its own; the kernel hands each connection to one of them. On
a CPU several workers pay off where one matcher leaves cores idle; on a GPU each takes the matcher's memory again.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

import httpx

from lvlm_guard.errors import KnobError
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.maskd.asks import SHARED
from lvlm_guard.serve.settings import Limits, MatcherSettings
from lvlm_guard.serve.sockets import bound, check_installed, run, url_of
from lvlm_guard.serve.vote.ballot import OBJECTS, served_vocabulary

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from lvlm_guard.matching import Matcher

PORT = 8201
GRACE = 10
"""Seconds that requests get to end after a signal to stop."""

SIGN_OF_LIFE = 20
"""Seconds a worker process may be silent before it is replaced; one starts slowly where others take the cores."""

_SETTINGS = "LVLM_GUARD_MASKD"


def maskd(
    settings: MatcherSettings,
    host: str = "127.0.0.1",
    port: int = PORT,
    ready: Callable[[str, str], None] = lambda url, version: None,
) -> None:
    """Serve until SIGINT or SIGTERM; from the main thread, whose signals it takes.

    Args:
        settings: matcher, workers, limits.
        host: address to listen on. There is no password: keep it on this machine or in a closed network.
        port: 0 for any free one.
        ready: called once with the service's URL and the matcher's version when it answers.

    Raises:
        MissingExtraError: starlette, uvicorn or prometheus_client is not installed.
        OSError: the address is taken or not this machine's.
        GuardError: the matcher can't be loaded, or the objects can't be read.
        ServeError: the workers could not start.
    """
    os.environ.pop(SHARED, None)  # another program's folder: its values are not ours
    check_installed("The matcher service")
    _check(settings)
    if settings.objects is not None:
        os.environ[OBJECTS] = settings.objects
    served_vocabulary()
    listening = bound(host, port)
    url = url_of(host, listening.getsockname()[1])
    # longer than clients keep idle connections, so that they don't ask on a closed one
    times = {"timeout_graceful_shutdown": GRACE, "timeout_keep_alive": 30}
    tell = Thread(target=_tell, args=(url, ready), daemon=True)
    folder: Any = nullcontext() if settings.workers == 1 else tempfile.TemporaryDirectory(prefix="lvlm-guard-maskd-")
    with listening, folder as shared:
        app: Any = f"{__name__}:app_of_environment"
        if settings.workers == 1:
            from lvlm_guard.serve.maskd.app import create_app

            matcher = load(settings)  # now, so that what is amiss is one message and no traceback of the server
            app = create_app(lambda: matcher, settings.limits)
            # uvicorn raises the signal again once it has closed, which would end the process here
            signal.signal(signal.SIGTERM, lambda *_: None)
        else:
            os.environ[SHARED] = shared
            os.environ[_SETTINGS] = json.dumps(asdict(settings))
        tell.start()
        ended = run(app, listening, settings.workers, timeout_worker_healthcheck=SIGN_OF_LIFE, **times)
    if any((status or 0) > 0 for status in ended):
        raise ServeError("A worker of the matcher service could not start; its error is above.")


def app_of_environment() -> Starlette:
    """Return the application of a worker process, whose parent left its settings in the environment."""
    from lvlm_guard.serve.maskd.app import create_app

    told = json.loads(os.environ[_SETTINGS])
    settings = MatcherSettings(**{**told, "limits": Limits(**told["limits"])})
    return create_app(lambda: load(settings), settings.limits)


def load(settings: MatcherSettings) -> Matcher:
    """Load the matcher of some settings; raises `GuardError` that says what to do where it can't be had."""
    import torch

    from lvlm_guard.matching import load_matcher
    from lvlm_guard.matching.loading import default_source
    from lvlm_guard.pretrained import DTYPES, usable_device

    torch.set_num_threads(settings.threads or max(1, torch.get_num_threads() // settings.workers))
    name = default_source(None) if settings.matcher == "blip-itm" else settings.matcher
    automatic = "cuda" if torch.cuda.is_available() else "cpu"  # a matcher gains little on a Mac's GPU
    device = usable_device(automatic if settings.device == "auto" else settings.device)
    if settings.dtype not in DTYPES:
        raise KnobError(f"dtype is {settings.dtype!r}: give float32 or bfloat16.")
    return load_matcher(name, device=device, dtype=DTYPES[settings.dtype])


def _check(settings: MatcherSettings) -> None:
    if settings.workers < 1 or (settings.threads is not None and settings.threads < 1):
        raise KnobError(f"There are {settings.workers} workers of {settings.threads} threads: give 1 or more of each.")
    limits = asdict(settings.limits)
    low = [name for name, value in limits.items() if not value > 0]
    if low:
        raise KnobError(f"{low[0]} is {limits[low[0]]}: give a limit above 0.")


def _tell(url: str, ready: Callable[[str, str], None]) -> None:
    while True:
        try:
            version = httpx.get(url + "/health", timeout=5, trust_env=False).json()["version"]
        except (httpx.HTTPError, ValueError):
            sleep(0.1)
            continue
        ready(url, version)
        return
