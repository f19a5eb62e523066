"""A front of checks before any server."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx
import openai
from front_server import serving
from prometheus_client import CollectorRegistry

from lvlm_guard.serve.front.checking import CheckingFront
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings

KEY, UPSTREAM_KEY = "what clients send", "sk-the-upstreams-own-key"


class Site:
    """A front of checks at an address."""

    def __init__(self, stack: ExitStack, upstream: str, matcher: str, **options: Any) -> None:
        settings = FrontSettings(
            ("embedded",),
            (),
            checks=("verify", "best"),
            **{"upstream": upstream, "upstream_key": UPSTREAM_KEY, "maskd_url": matcher, **options},
        )
        self.registry = CollectorRegistry()
        self.url = stack.enter_context(serving(CheckingFront(settings, key=KEY, metrics=FrontMetrics(self.registry))))
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def post(self, model: str, messages: Any, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": messages, "max_tokens": 40, **fields}
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=60,
        )
