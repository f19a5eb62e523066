"""The front's processes: what reads requests can be killed, and so can the front, in the middle of anything."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import readers
from front_server import EngineStandIn, MatcherStandIn, data_url, picture, serving, turn
from front_site import CHAT, GUARDS, IMAGE, QUESTION, Site
from PIL import Image

from lvlm_guard.proof import check, proof_of
from lvlm_guard.serve.front import reading
from lvlm_guard.serve.front.pictures import look_at
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.launch.child import Child, Keeper
from lvlm_guard.serve.launch.command import for_front, front_command
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.respawned import Respawned
from lvlm_guard.serve.sockets import bound, url_of


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(reading, "read", readers.read)
    with ExitStack() as stack:
        yield Site(stack, reading_seconds=4.0, readers=2, most_memory=200)


def test_what_reads_a_request_for_ever_is_killed_and_holds_nobody_up(site: Site) -> None:
    assert site.post().status_code == 200
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        hanging = pool.submit(site.post, "tiny", [turn("do hang", data_url(IMAGE))])
        time.sleep(0.1)
        for _ in range(3):
            assert site.post().status_code == 200
        assert not hanging.done()
        assert hanging.result().status_code == 413
        assert time.monotonic() - began > 3
    assert site.post().status_code == 200


def test_what_ends_its_reader_or_takes_all_memory_is_refused_and_the_next_request_is_read(site: Site) -> None:
    assert site.post("tiny-agla", [turn("do end", data_url(IMAGE))]).status_code == 413
    assert site.post("tiny-agla", [turn("do grow", data_url(IMAGE))]).status_code == 200
    assert "did grow" in json.dumps(site.engine.bodies[-1]["messages"])
    assert site.post().status_code == 200


def test_the_matcher_is_sent_its_square_and_the_engine_the_file(site: Site) -> None:
    site.matcher.side = 384
    large = picture(7, "JPEG", size=(900, 500))
    assert site.post("tiny-agla", [turn(QUESTION, data_url(large, "image/jpeg"))]).status_code == 200
    (sent,) = site.engine.bodies
    assert sent["messages"][0]["content"][0]["image_url"]["url"] == data_url(large, "image/jpeg")
    view = look_at(large, most_bytes=1 << 20, most_pixels=10**6, side=384).view
    assert site.matcher.images[-1] == view
    with Image.open(io.BytesIO(view)) as seen:
        assert (seen.size, seen.format) == ((384, 384), "PNG")


def test_an_engine_that_is_lost_in_the_middle_of_a_stream_leaves_no_whole_answer(site: Site) -> None:
    site.engine.breaks = True
    body = {"model": "tiny-agla", "messages": CHAT, "stream": True}
    said: list[bytes] = []
    with site.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            said.extend(answer.iter_bytes())
    assert b"[DONE]" not in b"".join(said)
    assert b"lost in the middle" in b"".join(said)
    assert site.count("lvlm_guard_broken_streams_total") == 1
    assert site.count("lvlm_guard_disconnects_total") == 0
    assert site.post("tiny-agla").status_code == 502


def test_an_engine_that_is_not_there_is_503_and_its_metrics_are_left_out(site: Site) -> None:
    with ExitStack() as stack:
        alone = Site(stack, upstream="http://127.0.0.1:1")
        for model in ("tiny", "tiny-agla"):
            answer = alone.post(model)
            assert (answer.status_code, answer.headers["x-agla"]) == (503, "refused")
        assert alone.http.get("/health").status_code == 503
        assert b"lvlm_guard_refusals_total" in alone.http.get("/metrics").content


def test_a_body_is_let_go_of_once_it_was_sent(site: Site) -> None:
    site.engine.hold = True
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(site.post, "tiny", [turn("x" * 1_000_000, data_url(IMAGE))])
        until(lambda: site.engine.bodies)
        until(lambda: site.front._bodies._now == 0)
        assert not asking.done()
        site.engine.hold = False
        assert asking.result().status_code == 200


class Running:
    """A front as `serve` starts it, before stand-ins."""

    def __init__(self, stack: ExitStack, folder: Any, workers: int, patience: int = 20) -> None:
        self.engine, self.matcher = EngineStandIn(), MatcherStandIn()
        keeper = Keeper()
        stack.callback(keeper.close)
        settings = FrontSettings(
            ("tiny",), GUARDS, upstream=stack.enter_context(serving(self.engine.app())), upstream_key="inner",
            maskd_url=stack.enter_context(serving(self.matcher.app())),
        )  # fmt: skip
        listening = stack.enter_context(bound("127.0.0.1", 0))
        (folder / "counted").mkdir()
        passed = Passed(["--shutdown-timeout", str(patience)])
        self.said: list[str] = []
        words, environment = front_command(passed, listening.fileno(), workers), for_front(settings, folder / "counted")
        start = lambda: Child(words, environment, keeper, sockets=[listening.fileno()])  # noqa: E731
        self.front = Respawned("The front", start, self.said.append, "wait.", (0.2, 10.0))
        stack.callback(lambda: self.front.stop(30, threading.Event()))
        self.url = url_of("127.0.0.1", listening.getsockname()[1])
        until(self.healthy, 120)
        self.front.answered = True

    def healthy(self) -> bool:
        self.front.check()
        try:
            return httpx.get(self.url + "/health", timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny-agla", "messages": CHAT, **fields}
        return httpx.post(self.url + "/v1/chat/completions", json=body, timeout=60, trust_env=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_front_that_is_killed_answers_rightly_or_not_at_all_and_comes_back(tmp_path: Any, workers: int) -> None:
    with ExitStack() as stack:
        running = Running(stack, tmp_path, workers)
        stop = threading.Event()
        wrong: list[str] = []
        right: list[float] = []

        def client() -> None:
            while not stop.is_set():
                try:
                    answer = running.ask()
                except httpx.HTTPError:
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    sent = json.loads(answer.json()["choices"][0]["message"]["content"])
                    check("tiny-agla", "agla", {"alpha": 2}, proof_of(answer.headers, answer.json()))
                    if sent["vllm_xargs"]["guard"] != "agla":
                        wrong.append(answer.text)
                    right.append(time.monotonic())

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            for _ in range(2):
                known = len(right)
                until(lambda known=known: len(right) > known + 4)
                os.killpg(running.front.child.pid, signal.SIGKILL)
                killed = time.monotonic()
                until(lambda killed=killed: (running.front.check(), right[-1] > killed + 0.5)[1], 120)
            stop.set()
            for one in clients:
                one.result()
        assert wrong == []
        assert len(running.said) >= 1


@pytest.mark.slow
def test_a_signal_lets_a_stream_end_and_takes_no_new_request(tmp_path: Any) -> None:
    with ExitStack() as stack:
        running = Running(stack, tmp_path, workers=1)
        running.engine.slow = 0.2  # seconds between pieces
        body = {"model": "tiny-agla", "messages": CHAT, "stream": True, "n": 1}
        with httpx.stream(
            "POST", running.url + "/v1/chat/completions", json=body, timeout=60, trust_env=False
        ) as answer:
            pieces = answer.iter_bytes()
            first = next(pieces)
            os.kill(running.front.child.pid, signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(httpx.HTTPError):
                running.ask()
            said = first + b"".join(pieces)
        assert said.rstrip().endswith(b"data: [DONE]")
        chunks = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: {")]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "one two three"
        check("tiny-agla", "agla", {"alpha": 2}, proof_of(answer.headers, chunks[-1]))
        until(lambda: running.front.child.ended() is not None)


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
