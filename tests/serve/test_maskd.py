"""The matcher service as its users start it: its answers are the matcher's own, whatever is done to it."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from maskd_service import Process, metric, png, scene, until
from PIL import Image

from lvlm_guard.matching import load_matcher
from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.errors import MaskdError
from lvlm_guard.serve.maskd.client import MaskdClient
from lvlm_guard.serve.vote.ballot import claims_of
from lvlm_guard.serve.wire import unpack_mask, unpack_scores

QUESTIONS = ("is there a dog in the image?", "is there a cat in the image?", "describe this image.", "what is red?")
EVERY = [(number, question) for number in range(12) for question in QUESTIONS]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("maskd") / "log", "--model", "embedded")
    yield process
    assert process.stop() == 0, process.log.read_text()


@pytest.fixture
def http(service: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as client:
        yield client


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def expected(number: int, question: str) -> np.ndarray:
    """The mask that the transformers engine paints with."""
    (match,) = load_matcher("embedded")([scene(number)], [question])
    return match.keep.numpy()


def test_a_mask_is_the_one_that_the_matcher_gives_in_process(http: httpx.Client, service: Process) -> None:
    for number, question in EVERY[:8]:
        said = http.post("/mask", json={"image": b64(png(number)), "question": question})
        assert said.status_code == 200
        assert said.json()["version"] == load_matcher("embedded").version == service.version
        np.testing.assert_array_equal(unpack_mask(said.json()["mask"]), expected(number, question))


def test_masks_of_concurrent_requests_are_each_their_own(service: Process) -> None:
    async def ask() -> list[np.ndarray]:
        client = MaskdClient(service.url, timeout=60)
        try:
            told = await asyncio.gather(*(client.mask(png(number), question) for number, question in EVERY))
        finally:
            await client.aclose()
        return [unpack_mask(one.mask) for one in told]

    for (number, question), mask in zip(EVERY, asyncio.run(ask()), strict=True):
        np.testing.assert_array_equal(mask, expected(number, question))
    assert metric(service.url, "lvlm_guard_maskd_batch_asks_count") < metric(
        service.url, "lvlm_guard_maskd_batch_asks_sum"
    )


def test_scores_of_claims_are_the_matchers_support(http: httpx.Client) -> None:
    claims = ["is there a dog in the image?", "is there a car in the image?", "is there an apple in the image?"]
    for number in range(6):
        said = http.post("/scores", json={"image": b64(png(number)), "claims": claims}).json()
        scores = unpack_scores(said["scores"])
        assert list(scores) == claims
        assert list(scores.values()) == pytest.approx(load_matcher("embedded").support(scene(number), claims).tolist())


def test_scores_of_a_question_are_of_the_claims_that_vote_asks_about(http: httpx.Client) -> None:
    for question in QUESTIONS:
        said = http.post("/scores", json={"image": b64(png(0)), "question": question}).json()
        scores = unpack_scores(said["scores"])
        assert tuple(scores) == claims_of(question)
        support = load_matcher("embedded").support(scene(0), list(scores)).tolist()
        assert list(scores.values()) == pytest.approx(support, abs=1e-6)
    assert Vote.template.format(article="a", object="dog") in claims_of("describe this image.")


def test_the_same_question_again_comes_from_memory_whatever_the_order_of_its_fields(
    http: httpx.Client, service: Process
) -> None:
    before = metric(service.url, "lvlm_guard_maskd_cache_hits_total")
    first = http.post("/mask", json={"image": b64(png(20)), "question": "is there a bus in the image?"})
    again = http.post("/mask", json={"question": "is there a bus in the image?", "image": b64(png(20))})
    other = http.post("/mask", json={"question": "is there a bus in the image ?", "image": b64(png(20))})
    assert first.json() == again.json()
    assert other.status_code == 200
    assert metric(service.url, "lvlm_guard_maskd_cache_hits_total") == before + 1


def test_health_tells_the_matchers_version(http: httpx.Client) -> None:
    said = http.get("/health")
    assert said.status_code == 200
    assert said.json()["status"] == "ok"
    assert said.json()["version"] == load_matcher("embedded").version


def test_metrics_are_text_that_prometheus_reads(http: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    said = http.get("/metrics")
    assert said.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(said.text)}
    assert {"answers", "seconds", "cache_hits", "busy", "waiting", "batch_asks", "matching_seconds"} <= {
        name.removeprefix("lvlm_guard_maskd_") for name in names
    }


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        ("/mask", b"", "no JSON"),
        ("/mask", b"{", "no JSON"),
        ("/mask", b"\xff\xfe", "no JSON"),
        ("/mask", b"[" * 100_000, "no JSON"),
        ("/mask", b"[1]", "JSON list"),
        ("/mask", b"null", "JSON NoneType"),
        ("/mask", {}, "'image'"),
        ("/mask", {"image": "", "question": "what?"}, "'image'"),
        ("/mask", {"image": 3, "question": "what?"}, "'image'"),
        ("/mask", {"image": "data:image/png;base64,AAAA", "question": "what?"}, "no base64"),
        ("/mask", {"image": "äöü", "question": "what?"}, "no base64"),
        ("/mask", {"image": b64(png(0))}, "'question'"),
        ("/mask", {"image": b64(png(0)), "question": "  "}, "'question'"),
        ("/mask", {"image": b64(png(0)), "question": ["what?"]}, "'question'"),
        ("/mask", {"image": b64(png(0)), "question": "?" * 40_000}, "limit"),
        ("/mask", b'{"image": "' + b64(png(0)).encode() + b'", "question": "a\\ud800"}', "surrogate"),
        ("/mask", {"image": b64(png(0)), "question": "..."}, "empty"),
        ("/mask", {"image": b64(png(0)), "question": "what?", "claims": []}, "no field 'claims'"),
        ("/mask", {"image": b64(b"no picture"), "question": "what?"}, "no picture"),
        ("/mask", {"image": b64(png(0)[:300]), "question": "what?"}, "corrupt|cut|broken|damaged"),
        ("/scores", {"image": b64(png(0))}, "either"),
        ("/scores", {"image": b64(png(0)), "claims": ["a"], "question": "what?"}, "either"),
        ("/scores", {"image": b64(png(0)), "claims": []}, "'claims'"),
        ("/scores", {"image": b64(png(0)), "claims": "a dog"}, "'claims'"),
        ("/scores", {"image": b64(png(0)), "claims": ["a dog", 3]}, "'claims'"),
        ("/scores", {"image": b64(png(0)), "claims": [""]}, "'claims'"),
        ("/scores", {"image": b64(png(0)), "claims": ["a"] * 5000}, "'claims'"),
        ("/scores", {"image": b64(b"GIF89a"), "claims": ["a dog"]}, "picture|corrupt|damaged"),
    ],
)
def test_what_can_not_be_used_is_400_with_the_reason(
    http: httpx.Client, route: str, body: bytes | dict[str, object], said: str
) -> None:
    answer = http.post(route, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert answer.status_code == 400, answer.text
    assert re.search(said, answer.json()["error"]["message"])
    assert http.get("/health").json()["status"] == "ok"


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(http: httpx.Client) -> None:
    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    answer = http.post("/mask", json={"image": b64(bomb), "question": "what?"})
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(http: httpx.Client) -> None:
    large = b"x" * (33 << 20)
    told = http.post("/mask", content=large)
    untold = http.post("/mask", content=(large[start : start + 65536] for start in range(0, len(large), 65536)))
    assert (told.status_code, untold.status_code) == (413, 413)
    assert http.post("/mask", json={"image": b64(png(0)), "question": QUESTIONS[0]}).status_code == 200


def test_other_routes_and_methods_are_not_there(http: httpx.Client) -> None:
    assert http.get("/mask").status_code == 405
    assert http.post("/health").status_code == 405
    assert http.get("/").status_code == 404
    assert http.get("/docs").status_code == 404


def test_pictures_of_other_kinds_are_matched_as_the_engine_matches_them(http: httpx.Client) -> None:
    wide = scene(3).resize((300, 80)).convert("RGBA")
    held = io.BytesIO()
    wide.save(held, "WEBP", lossless=True)
    answer = http.post("/mask", json={"image": b64(held.getvalue()), "question": QUESTIONS[0]})
    (match,) = load_matcher("embedded")([Image.open(held).convert("RGB")], [QUESTIONS[0]])
    np.testing.assert_array_equal(unpack_mask(answer.json()["mask"]), match.keep.numpy())


@pytest.mark.slow
def test_killed_and_started_again_under_load_it_gives_errors_but_no_wrong_answer(tmp_path: Path) -> None:
    right = {ask: expected(*ask) for ask in EVERY}
    counts = {"right": 0, "wrong": 0, "error": 0}

    async def client_of(url: str, stop: asyncio.Event, first: int) -> None:
        client = MaskdClient(url, timeout=5)
        client._told.capacity = 0  # every question goes to the service
        turn = first
        while not stop.is_set():
            ask = EVERY[turn % len(EVERY)]
            turn += 1
            try:
                told = await client.mask(png(ask[0]), ask[1])
            except MaskdError as error:
                counts["error" if error.retry_after is not None else "wrong"] += 1
                await asyncio.sleep(0.05)
                continue
            counts["right" if np.array_equal(unpack_mask(told.mask), right[ask]) else "wrong"] += 1
        await client.aclose()

    async def run() -> tuple[int, int]:
        process = await asyncio.to_thread(Process, tmp_path / "log", "--cache", "1")
        stop = asyncio.Event()
        clients = [asyncio.create_task(client_of(process.url, stop, 7 * n)) for n in range(6)]
        await asyncio.sleep(2)
        before = counts["right"]
        await asyncio.to_thread(process.kill)
        await asyncio.sleep(0.5)
        down = counts["right"]
        process = await asyncio.to_thread(Process, tmp_path / "log", "--cache", "1", port=process.port)
        await asyncio.sleep(2)
        stop.set()
        await asyncio.gather(*clients)
        await asyncio.to_thread(process.stop)
        return before, down

    before, down = asyncio.run(run())
    assert counts["wrong"] == 0
    assert before > 0
    assert counts["error"] > 0
    assert counts["right"] > down


@pytest.mark.slow
def test_several_workers_share_the_port_and_their_metrics_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    process = Process(tmp_path / "log", "--workers", "2")
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = {
            int(pid)
            for pid in children.read_text().split()
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        }
        assert len(workers) == 2

        def asked(number: int) -> int:
            fields = {"image": b64(png(number)), "question": QUESTIONS[0]}
            try:
                said = httpx.post(process.url + "/mask", json=fields, trust_env=False, timeout=60)
            except httpx.TransportError:
                return 0
            if said.status_code == 200:
                np.testing.assert_array_equal(unpack_mask(said.json()["mask"]), expected(number, QUESTIONS[0]))
            return said.status_code

        assert {asked(number) for number in range(20)} == {200}
        assert metric(process.url, "lvlm_guard_maskd_answers_total") == 20
        os.kill(min(workers), signal.SIGKILL)
        until(lambda: min(workers) not in {int(pid) for pid in children.read_text().split()})
        assert {asked(number) for number in range(20)} <= {200, 0}
        until(lambda: {asked(number) for number in range(4)} == {200})
        assert metric(process.url, "lvlm_guard_maskd_waiting") == 0
        assert metric(process.url, "lvlm_guard_maskd_answers_total") >= 24
    finally:
        assert process.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def started(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lvlm_guard.serve.maskd", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_what_keeps_it_from_starting_is_one_message(service: Process) -> None:
    taken = started("--port", str(service.port))
    assert taken.returncode == 1
    assert "Address already in use" in taken.stderr
    unknown = started("--matcher", "blip-imt", "--port", "0")
    assert unknown.returncode == 2
    assert "Did you mean 'blip-itm'?" in unknown.stderr
    for said in (taken, unknown):
        assert "Traceback" not in said.stderr


@pytest.mark.slow
def test_workers_that_can_not_start_are_not_started_for_ever() -> None:
    said = started("--matcher", "blip-imt", "--port", "0", "--workers", "2")
    assert said.returncode == 1
    assert "Did you mean 'blip-itm'?" in said.stderr
    assert "could not start" in said.stderr


@pytest.mark.slow
def test_an_adapter_serves_masks_and_scores_as_it_gives_them_in_process(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter = load_matcher("embedded-dual-prompt")
    question, claim = QUESTIONS[0], "is there a dog in the image?"
    service = Process(tmp_path / "log", "--matcher", "embedded-dual-prompt")
    try:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as http:
            body = {"image": b64(png(0))}
            mask = unpack_mask(http.post("/mask", json={**body, "question": question}).json()["mask"])
            scores = unpack_scores(http.post("/scores", json={**body, "claims": [claim]}).json()["scores"])
    finally:
        service.stop()
    assert service.version == adapter.version
    assert (mask == adapter([scene(0)], [question])[0].keep.numpy()).all()
    assert scores[claim] == pytest.approx(float(adapter.support(scene(0), [claim])[0]), abs=1e-6)
