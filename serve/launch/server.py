"""Start a guarded server, check that its guards act, open it, and watch over it until it is told to stop."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.names import Names
from lvlm_guard.serve.front.settings import KEY
from lvlm_guard.serve.launch import questions, refused
from lvlm_guard.serve.launch.canary import TOP, Canary
from lvlm_guard.serve.launch.checking import CheckingServer
from lvlm_guard.serve.launch.checkpoint import Checkpoint
from lvlm_guard.serve.launch.child import Keeper
from lvlm_guard.serve.launch.command import adapters, command, environment
from lvlm_guard.serve.launch.installed import Installed, check_release, installed
from lvlm_guard.serve.launch.parts import GRACE, Engine, Parts, Ready, Say, Signals, Stopped, taken
from lvlm_guard.serve.settings import ServeSettings


class Server(Parts):
    """A guarded model on vLLM; see `Parts`, whose `stack` closes what was opened.

    Raises:
        GuardError: the server can't be started so.
    """

    def __init__(self, settings: ServeSettings, say: Say, stack: ExitStack, keeper: Keeper, signals: Signals) -> None:
        super().__init__(settings, say, keeper, signals)
        self._vllm: Installed = installed()
        self._checkpoint = Checkpoint.of(settings.model, settings.passed)
        self._guards = refused.guards_of(settings.guards, self._checkpoint, cpu=self._vllm.cpu)
        self._twin = self._checkpoint.twin if refused.branched(self._guards) else None
        refused.check(settings.passed, self._guards, twin=self._twin is not None)
        if self._twin:
            check_release(self._vllm)
        most = settings.passed.value("max-logprobs", str(TOP))
        if most.isdigit() and int(most) < TOP:
            raise ServeError(f"--max-logprobs {most} hides what the check of the guards looks at: give {TOP} or more.")
        plain = settings.names or (settings.model,)
        self._names = Names((*plain, *adapters(settings.passed)), self._guards)
        self._no_question = self._checkpoint.no_question()
        self._special_tokens = special_tokens(self._checkpoint.tokenizer, self._template())
        self._settle(stack, self._checkpoint.embedded)
        self._command = command(
            self._checkpoint,
            self._guards,
            self._vllm,
            names=plain,
            most_pictures=settings.most_pictures,
            uds=str(self._folder / "vllm.sock"),
            eager=settings.eager,
            twin=self._twin,
        )

    def _open(self, ready: Callable[[Ready], None]) -> None:
        given = self._given
        if self._twin:
            self._say(
                "A twin engine runs every step on two branches and keeps two KV caches, for requests to the plain name "
                "too: half the tokens fit into the same memory. For mostly plain traffic serve --guards vote, which "
                "leaves the model as it is, or run a second, ordinary vLLM and let a router choose by model name."
            )
        maskd, version = None, None
        if {"agla", "vote"} & set(self._guards):
            maskd, version = self._start_matcher(self._checkpoint.embedded)
        token, opened = secrets.token_urlsafe(24), self._folder / "open"
        inner = secrets.token_urlsafe(24)
        front = {
            "names": self._names.plain,
            "guards": self._guards,
            "upstream": self._command[self._command.index("--uds") + 1],
            "upstream_key": inner,
            "maskd_url": maskd,
            "drop": self._no_question,
            "opened": str(opened),
            "token": token,
            "special_tokens": self._special_tokens,
        }
        self._say(f"Starting vLLM {self._vllm.version} with {given.model}; large models take minutes.")
        counts = self._folder / "counts"
        counts.mkdir()
        made = environment(inner, self._checkpoint, self._vllm, counts)
        self._parts.append((Engine(self._command, made, self._keeper), GRACE))
        url = self._start_front(front, "vLLM is still starting")
        self._ask([Canary(url, self._names.plain[0], token, os.environ.get(KEY, ""), rank) for rank in self._engines()])
        opened.touch()
        ready(Ready(url, self._names.all, self._guards, maskd, version, os.getpid()))

    def _template(self) -> str | None:
        """Return the chat template that the user gave vLLM, as a file or as it is; None: the model's own."""
        given = self._given.passed.value("chat-template")
        if not given:
            return None
        return Path(given).read_text(encoding="utf-8") if "{" not in given else given

    def _engines(self) -> list[int | None]:
        """Return the ranks of a data-parallel server, each of which is an engine with caches of its own."""
        size = self._given.passed.value("data-parallel-size", "1")
        if not size.isdigit() or not int(size):
            raise ServeError(f"--data-parallel-size {size!r}: give a whole number from 1 on.")
        return list(range(int(size))) if int(size) > 1 else [None]

    def _ask(self, canaries: list[Canary]) -> None:
        """Ask the canary's questions of each engine, on a thread: a signal or a death must not wait for an answer."""
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                for canary in canaries:
                    questions.check(canary, self._guards, lambda: self._checkpoint.tokenizer)
            except BaseException as error:  # told by the main thread
                failed.append(error)
            finally:
                for canary in canaries:
                    canary.close()

        asking = Thread(target=ask, daemon=True)
        asking.start()
        self._until(lambda: not asking.is_alive(), told="The guards are still being checked")
        if failed:
            raise failed[0]


def special_tokens(processor: Any, template: str | None = None) -> bool:
    """Return whether the tokenizer has to add its special tokens to what the chat template writes.

    Some templates write the first token (<s>), others leave it to the tokenizer, LLaVA-1.5's among them. vLLM takes
    every chat's template to write it, so that such a model would be served without the token that it was trained with:
    the front says in each request what `ProcessorMixin.apply_chat_template` of transformers would have found.

    Args:
        processor: of the model, or its tokenizer.
        template: chat template in Jinja; None: the model's own.

    Raises:
        ValueError: it has no chat template.
    """
    talk = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    chosen = {} if template is None else {"chat_template": template}
    text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **chosen)
    bos = getattr(processor, "tokenizer", processor).bos_token
    return not (bos and text.startswith(bos))


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
            made(settings, say, stack, keeper, signals).run(ready)
        except Stopped:
            if signals.came[0] == signal.SIGINT:
                raise KeyboardInterrupt from None
            say("Stopped.")
