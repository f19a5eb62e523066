"""The front's ways in: a key, few routes, known names and fields, and bodies of bounded size and time."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from front_server import turn
from front_site import CHAT, GUARDS, KEY, Site
from prometheus_client import CollectorRegistry

from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"]
)
def test_without_the_key_nothing_is_read_or_done(closed: Site, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key.encode("latin-1")}
    with httpx.Client(base_url=closed.url, trust_env=False) as http:
        for answer in (
            http.post("/v1/chat/completions", content=b"\0" * 100, headers=headers),
            http.get("/v1/models", headers=headers),
        ):
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
        assert http.get("/health", headers=headers).text == "reached"
    assert (closed.engine.bodies, closed.matcher.asked) == ([], [])


def test_a_wrong_key_reaches_the_openai_client_as_its_own_error(site: Site) -> None:
    client = openai.OpenAI(
        base_url=f"{site.url}/v1", api_key="no", max_retries=0, http_client=httpx.Client(trust_env=False)
    )
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="tiny-agla", messages=CHAT)


def test_without_a_key_of_the_server_none_is_needed() -> None:
    with ExitStack() as stack:
        assert Site(stack, key="").post().status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/inference/v1/generate", "/tokenize",
        "/v1/chat/completions/render", "/v1/chat/completions/batch", "/v1/chat/completions/", "//v1/chat/completions",
        "/V1/chat/completions", "/v1/load_lora_adapter", "/invocations", "/pooling", "/", "/docs", "/openapi.json",
        "/v1/models/tiny", "/health/", "/v1/../v1/completions", "/v1/audio/transcriptions", "/collective_rpc",
    ],
)  # fmt: skip
def test_every_other_way_in_is_closed(closed: Site, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        raw = _raw(
            closed, f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n"
        )
        assert raw.startswith("HTTP/1.1 404"), raw[:80]
    assert set(closed.engine.paths) <= {"/health"}


def test_open_routes_take_their_methods_alone(site: Site) -> None:
    assert site.http.post("/v1/models").status_code == 405
    assert site.http.get("/v1/chat/completions").status_code == 405
    assert site.http.post("/metrics").status_code == 405
    assert [site.http.get(path).status_code for path in ("/health", "/ping", "/version", "/metrics")] == [200] * 4


def test_web_sockets_are_closed() -> None:
    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def never(*_: Any) -> Any:
            raise AssertionError("reached")

        settings = FrontSettings(("tiny",), ("apc",))
        front = Front(settings, key="", metrics=FrontMetrics(CollectorRegistry()))
        await front({"type": "websocket", "path": "/v1/realtime"}, never, send)
        return sent

    assert asyncio.run(ask()) == [{"type": "websocket.close", "code": 1008}]


def test_the_list_of_models_holds_every_name_and_no_other(site: Site) -> None:
    models = site.openai.models.list().data
    assert [model.id for model in models] == ["tiny", *(f"tiny-{guard}" for guard in GUARDS)]
    assert {model.owned_by for model in models} == {"x"}


def test_an_unknown_name_is_not_found(site: Site) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny-agla'"):
        site.openai.chat.completions.create(model="tiny-aglaa", messages=CHAT)
    assert site.engine.bodies == []


@pytest.mark.parametrize(
    "fields",
    [
        {"vllm_xargs": {"guard": "agla"}}, {"vllm_xargs": {"agla_beta": 2}},
        {"mm_processor_kwargs": {"guard_mask": "x"}},
        {"use_beam_search": True}, {"prompt_logprobs": 1}, {"unknown": 1}, {"repetition_penalty": 1.5},
    ],
)  # fmt: skip
def test_a_refusal_reaches_the_client_and_nothing_reaches_the_engine(closed: Site, fields: dict[str, Any]) -> None:
    before = closed.count("lvlm_guard_refusals_total", status="400", reason="request")
    answer = closed.post(**fields)
    assert (answer.status_code, answer.headers["x-agla"]) == (400, "refused")
    assert (closed.engine.bodies, closed.matcher.asked) == ([], [])
    assert closed.count("lvlm_guard_refusals_total", status="400", reason="request") == before + 1


def test_an_address_is_never_passed_on_to_the_engine_under_any_name(site: Site) -> None:
    for model in ("tiny", "tiny-agla", "tiny-apc"):
        for url in ("http://127.0.0.1/a.png", "http://localhost:1/a", "file:///etc/hostname", "https://[::1]/"):
            assert site.post(model, [turn("a dog?", url)]).status_code == 400
    assert site.engine.bodies == []


def test_a_body_over_the_limit_is_refused_whether_announced_or_not() -> None:
    with ExitStack() as stack:
        site = Site(stack, most_body=20_000)
        assert site.post(messages=[turn("x" * 30_000)]).status_code == 413
        pieces = (b" " * 1000 for _ in range(100))
        assert site.http.post("/v1/chat/completions", content=pieces).status_code == 413
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        assert _raw(site, f"{head}Content-Length: 99999999999\r\n").startswith("HTTP/1.1 413")
        assert site.engine.bodies == []


def test_a_client_that_sends_slowly_is_given_up() -> None:
    with ExitStack() as stack:
        site = Site(stack, body_seconds=0.3)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        assert _raw(site, f"{head}Content-Length: 100\r\n").startswith("HTTP/1.1 408")


def _raw(site: Site, head: str) -> str:
    """Send a head by hand, and return what comes back."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        received = b""
        while not received.endswith(b"}") and (piece := connection.recv(65536)):
            received += piece
        return received.decode()
