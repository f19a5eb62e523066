"""The client of the matcher service: whatever answers, it gives a sound mask or an error."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from maskd_service import Gated, free_port, metric, png, scene, served

from lvlm_guard.matching import load_matcher
from lvlm_guard.serve.errors import MaskdError, Refused
from lvlm_guard.serve.maskd.client import MOST_ANSWER, MaskdClient
from lvlm_guard.serve.wire import pack_mask, pack_scores, unpack_mask

MASK = pack_mask(np.ones((8, 8), bool))
OTHER = pack_mask(np.zeros((8, 8), bool))


@contextmanager
def answering(answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """An HTTP server on loopback that gives these answers in turn, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
            if status == 0:  # goes away in the middle
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                return
            if status == 1:  # never answers
                stopped.wait(30)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def asking(url: str, ask: Callable[[MaskdClient], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        client = MaskdClient(url, **options)
        try:
            return await ask(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def sound(mask: str = MASK, version: str = "v1") -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"mask": mask, "version": version}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b"{}"),
        (200, {}, json.dumps({"mask": MASK}).encode()),
        (200, {}, json.dumps({"mask": MASK, "version": ""}).encode()),
        (200, {}, json.dumps({"mask": MASK, "version": 3}).encode()),
        (200, {}, json.dumps({"mask": None, "version": "v1"}).encode()),
        (200, {}, json.dumps({"mask": MASK[:-8], "version": "v1"}).encode()),
        (200, {}, json.dumps({"mask": pack_scores(["a"], [0.5]), "version": "v1"}).encode()),
        (200, {}, b" " * (MOST_ANSWER + 1)),
        (500, {}, b'{"error": {"message": "broken", "code": 500}}'),
        (404, {}, b'{"detail": "Not Found"}'),
        (302, {"Location": "http://127.0.0.1:1/mask"}, b"{}"),
        (501, {}, b'{"error": "maps only"}'),
    ],
)
def test_an_answer_that_is_no_mask_is_an_error_that_asking_again_will_not_mend(
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    with answering([answer]) as url, pytest.raises(MaskdError) as told:
        asking(url, lambda client: client.mask(b"x", "what?"))
    assert told.value.retry_after is None


@pytest.mark.parametrize(("said", "after"), [("7", 7), ("0", 1), ("900", 60), ("soon", 1), ("nan", 1), (None, 1)])
def test_a_busy_service_is_an_error_that_says_when_to_ask_again(said: str | None, after: float) -> None:
    headers = {} if said is None else {"Retry-After": said}
    busy = (503, headers, b'{"error": {"message": "2 requests wait", "code": 503}}')
    with answering([busy]) as url, pytest.raises(MaskdError, match="2 requests wait") as told:
        asking(url, lambda client: client.mask(b"x", "what?"))
    assert told.value.retry_after == after


@pytest.mark.parametrize("status", [400, 413])
def test_what_the_matcher_can_not_use_is_refused_with_its_reason(status: int) -> None:
    answer = (status, {}, b'{"error": {"message": "no picture", "code": 400}}')
    with answering([answer]) as url, pytest.raises(Refused, match="no picture") as told:
        asking(url, lambda client: client.mask(b"x", "what?"))
    assert told.value.status == status


@pytest.mark.parametrize("status", [0, 1])
def test_a_service_that_goes_away_or_never_answers_is_an_error_to_ask_again_after(status: int) -> None:
    with answering([(status, {}, b"")]) as url, pytest.raises(MaskdError) as told:
        asking(url, lambda client: client.mask(b"x", "what?"), timeout=0.5)
    assert told.value.retry_after is not None


def test_nobody_listening_is_an_error_to_ask_again_after() -> None:
    with pytest.raises(MaskdError, match="can't be reached") as told:
        asking(f"http://127.0.0.1:{free_port()}", lambda client: client.mask(b"x", "what?"))
    assert told.value.retry_after is not None


def test_what_was_told_is_remembered_until_another_matcher_answers() -> None:
    async def ask(client: MaskdClient) -> None:
        assert (await client.mask(b"x", "what?")).mask == MASK
        assert (await client.mask(b"x", "what?")).mask == MASK
        assert (client.asked, client.hits) == (2, 1)
        assert (await client.mask(b"y", "what?")).version == "v2"
        again = await client.mask(b"x", "what?")
        assert (again.mask, again.version) == (OTHER, "v2")
        assert client.hits == 1

    with answering([sound(), sound(version="v2"), sound(OTHER, "v2")]) as url:
        asking(url, ask)


def test_an_error_is_not_remembered() -> None:
    async def ask(client: MaskdClient) -> None:
        with pytest.raises(MaskdError):
            await client.mask(b"x", "what?")
        assert (await client.mask(b"x", "what?")).mask == MASK

    with answering([(503, {}, b"{}"), sound()]) as url:
        asking(url, ask)


def test_scores_of_other_claims_are_an_error() -> None:
    answer = json.dumps({"scores": pack_scores(["b"], [0.5]), "version": "v1"}).encode()
    with answering([(200, {}, answer)]) as url, pytest.raises(MaskdError, match="other claims"):
        asking(url, lambda client: client.scores(b"x", ["a"]))


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with answering([sound()]) as url:
        assert asking(url, lambda client: client.mask(b"x", "what?")).mask == MASK


def test_the_real_service_and_the_client_speak_the_same() -> None:
    claims = ["is there a dog in the image?", "is there a cat in the image?"]

    async def ask(client: MaskdClient) -> None:
        matcher = load_matcher("embedded")
        assert client.known is None
        assert await client.seen() == client.known == (matcher.version, matcher.side)
        told = await client.mask(png(5), "is it red?")
        (match,) = matcher([scene(5)], ["is it red?"])
        np.testing.assert_array_equal(unpack_mask(told.mask), match.keep.numpy())
        given = await client.scores(png(5), claims)
        assert dict(given.scores) == pytest.approx(
            dict(zip(claims, matcher.support(scene(5), claims).tolist(), strict=True))
        )
        with pytest.raises(Refused, match="no picture"):
            await client.mask(b"no picture", "is it red?")

    with served(Gated()) as url:
        asking(url, ask)
        assert metric(url, "lvlm_guard_maskd_answers_total") == 3
