"""One endpoint for every test of a session, and one run through it that nothing disturbed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from openai_endpoint import OpenAIEndpoint, load
from server_runs import SMALL, go, rows

from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.infer.server.asker import ServerAsker
from lvlm_guard.evals.tasks import tasks_of


@pytest.fixture(scope="session")
def pair() -> Any:
    return load()


@pytest.fixture(scope="session")
def served(pair: Any) -> Any:
    with OpenAIEndpoint(pair, guards=("agla", "vote", "apc")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def unbroken(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return rows(go(served, tmp_path_factory.mktemp("unbroken")))


@pytest.fixture(scope="session")
def ready(served: Any) -> Any:
    settings = replace(SMALL, server=served.url)
    return served, tasks_of(settings)[0], server_run(settings)[1]


@pytest.fixture
def asked(ready: Any) -> Any:
    """The endpoint, a task, and an asker that has had its first proofs and no failures."""
    served, task, asker = ready
    return served, task, ServerAsker(asker.endpoint, 1, asker.lines, dict(asker.proofs), asker.tells)
