"""Start a guarded server, check that its guards act, open it, and watch over it until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack

from lvlm_guard.serve.launch.checking import CheckingServer
from lvlm_guard.serve.launch.child import Keeper
from lvlm_guard.serve.launch.parts import Parts, Ready, Say, Stopped, taken
from lvlm_guard.serve.launch.server import Server
from lvlm_guard.serve.launch.settings import ServeSettings


def serve(settings: ServeSettings, ready: Callable[[Ready], None], say: Say) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; from the main thread, whose signals it takes.

    Args:
        settings: the user's.
        ready: called once, when every guard was seen to act and its names are open.
        say: tells the operator what is no result.

    Raises:
        MissingExtraError: vLLM, or what the front is made of, is not installed.
        GuardError: an option would break a guard; a part can't be started, or a guard does not act; vLLM died.
        OSError: the address is taken.
        KeyboardInterrupt: Ctrl-C, once everything is stopped.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(taken())
        keeper = Keeper()
        stack.callback(keeper.close)
        try:
            made = CheckingServer if settings.upstream is not None else Server
            server: Parts = made(settings, say, stack, keeper, signals)
            server.run(ready)
        except Stopped:
            if signals.came[0] == signal.SIGINT:
                raise KeyboardInterrupt from None
            say("Stopped.")
