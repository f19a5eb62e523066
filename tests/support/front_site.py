"""A front with an app in vLLM's place behind it, and a matcher service."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx
import openai
from front_server import EngineStandIn, MatcherStandIn, data_url, picture, serving, turn
from prometheus_client import CollectorRegistry

from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings

KEY, INNER = "secret-key", "the engine's own"
GUARDS = ("agla", "vcd", "apc", "vote")
IMAGE = picture()
QUESTION = "is there a dog?"
CHAT = [turn(QUESTION, data_url(IMAGE))]


class Site:
    """A front with what stands behind it."""

    def __init__(self, stack: ExitStack, key: str = KEY, **options: Any) -> None:
        self.key = key
        self.engine, self.matcher = EngineStandIn(), MatcherStandIn()
        self.matcher_url = stack.enter_context(serving(self.matcher.app()))
        self.engine_url = stack.enter_context(serving(self.engine.app()))
        behind = {"maskd_url": self.matcher_url, "upstream": self.engine_url, "upstream_key": INNER}
        self.settings = FrontSettings(("tiny",), GUARDS, **{**behind, **options})
        self.registry = CollectorRegistry()
        self.front = Front(self.settings, key=key, metrics=FrontMetrics(self.registry))
        self.url = stack.enter_context(serving(self.front))
        self.http = stack.enter_context(
            httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                trust_env=False,
                timeout=20,
            )
        )
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0, http_client=self.http
        )

    def forget(self) -> None:
        """Be as new, but for the processes that read requests: they take a second to start."""
        vars(self.engine).update(vars(EngineStandIn()))
        vars(self.matcher).update(vars(MatcherStandIn()))
        self.registry = CollectorRegistry()
        self.front.__init__(self.settings, key=self.key, metrics=FrontMetrics(self.registry))  # type: ignore[misc]

    def post(self, model: str = "tiny-agla", messages: Any = CHAT, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": messages, **fields})

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0
