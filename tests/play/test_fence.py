"""What stands before the page's server: its own requests pass, bounded; every other way in is closed."""

import asyncio

import httpx
import pytest

from lvlm_guard.play.app import MOST_BODY, Fence

KEPT = []


async def behind(scope, receive, send):
    """Reads the whole body, as gradio does."""
    read, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            KEPT.append("left")
            return
        read += len(message.get("body", b""))
        more = message.get("more_body", False)
    KEPT.append(read)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(read).encode()})


def asked(method: str, path: str, **more) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=Fence(behind))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, **more)

    KEPT.clear()
    return asyncio.run(send())


def test_the_pages_own_requests_pass():
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/heartbeat/abc"):
        assert asked("POST", path, content=b"12345").text == "5"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://169.254.169.254/",
        "/gradio_api/run/predict",
        "/gradio_api/call/asked",
        "/gradio_api/info",
        "/gradio_api/component_server",
        "/monitoring/key",
        "/gradio_api/mcp/sse",
        "/login",
    ],
)
def test_every_other_way_in_is_closed(path):
    answer = asked("POST", path, content=b"1")
    assert answer.status_code == 404
    assert "answers its page alone" in answer.json()["error"]
    assert KEPT == []


def test_a_request_that_says_it_is_too_large_is_refused_unread():
    answer = asked("POST", "/gradio_api/queue/join", content=b"x" * (MOST_BODY + 1))
    assert answer.status_code == 413
    assert KEPT == []


def test_a_request_without_a_length_is_cut_where_it_gets_too_large():
    async def endless():
        for _ in range(MOST_BODY // (1 << 20) + 2):
            yield b"x" * (1 << 20)

    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the client makes of a server that gives no answer
        asked("POST", "/gradio_api/queue/join", content=endless())
    assert KEPT == ["left"]


def test_the_browser_is_told_to_load_nothing_from_elsewhere():
    policy = asked("GET", "/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
