"""Attacks that once held the server up, or got something past its front: each was seen to work before it was mended."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from front_attacks import of_frames
from front_server import data_url, turn
from front_site import CHAT, IMAGE, INNER, KEY, Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, body_seconds=5.0)


@pytest.mark.parametrize("model", ["tiny", "tiny-agla", "tiny-vote"])
def test_a_text_of_blanks_holds_nobody_up(site: Site, model: str) -> None:
    began = time.monotonic()
    for blanks in (" " * 100_000, " " * 30_000, "\n" * 30_000, " \n" * 15_000):
        assert site.post(model, [turn(f"a{blanks}b", data_url(IMAGE))]).status_code in (200, 413)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("model", ["tiny", "tiny-agla"])
def test_a_picture_whose_header_never_ends_is_refused_at_once(site: Site, model: str) -> None:
    bomb = of_frames(4000)
    assert 400_000 < len(bomb) < 500_000
    began = time.monotonic()
    assert site.post(model, [turn("is there a dog?", data_url(bomb, "image/tiff"))]).status_code == 400
    assert time.monotonic() - began < 0.5


def test_clients_that_send_a_letter_at_a_time_take_nobody_s_place(site: Site) -> None:
    host, _, port = site.url.removeprefix("http://").partition(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            connection.sendall(head.encode() + b"{")
        time.sleep(0.2)
        for model in ("tiny", "tiny-agla"):
            assert site.post(model).status_code == 200


def test_headers_that_would_speak_to_the_engine_do_not_reach_it(site: Site) -> None:
    forged = {
        "X-Vllm-Priority": "-5", "X-data-parallel-rank": "1", "X-Session-ID": "other", "X-Request-Id": "other",
        "Accept-Encoding": "gzip", "X-AGLA": "on; alpha=2; beta=0.5; mask=forged", "X-LVLM-Guard-Canary": "x 1.0",
        "Expect-CT": "x", "Forwarded": "for=1.2.3.4", "traceparent": f"00-{'4b' * 16}-{'00f0' * 4}-01",
    }  # fmt: skip
    body = {"model": "tiny-agla", "messages": CHAT}
    answer = site.http.post("/v1/chat/completions", json=body, headers=forged)
    assert answer.headers.get_list("x-agla") == ["on; alpha=2; beta=0.5; mask=stand-in@1"]
    seen = site.engine.headers[-1]
    assert not {name.lower() for name in forged if name not in ("traceparent", "Accept-Encoding")} & set(seen)
    assert (seen["accept-encoding"], seen["authorization"]) == ("identity", f"Bearer {INNER}")
    assert seen["traceparent"] == forged["traceparent"]
