"""The queue before the matcher: batches, limits, deadlines, clients that go away, a clean end."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from maskd_service import Gated, metric, png, scene, served, until
from PIL import Image

from lvlm_guard.errors import ImageError
from lvlm_guard.images import MAX_PIXELS
from lvlm_guard.matching import Match, Matcher, load_matcher
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import Answer, Ask
from lvlm_guard.serve.maskd.batcher import Batcher, Outcome
from lvlm_guard.serve.maskd.matching import Matching
from lvlm_guard.serve.maskd.metrics import Metrics
from lvlm_guard.serve.settings import Limits
from lvlm_guard.serve.wire import unpack_mask, unpack_scores


def asked(url: str, number: int, question: str = "is there a dog in the image?") -> httpx.Response:
    fields = {"image": base64.b64encode(png(number)).decode(), "question": question}
    return httpx.post(url + "/mask", json=fields, trust_env=False, timeout=60)


class Crowd:
    """Clients that ask at the same time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(16)

    def ask(self, number: int, question: str = "is there a dog in the image?") -> Future[httpx.Response]:
        return self._pool.submit(asked, self._url, number, question)


def right(answer: httpx.Response, number: int, question: str = "is there a dog in the image?") -> bool:
    (match,) = load_matcher("embedded")([scene(number)], [question])
    return answer.status_code == 200 and bool((unpack_mask(answer.json()["mask"]) == match.keep.numpy()).all())


def test_what_arrives_while_a_batch_runs_makes_the_next_batch() -> None:
    matcher = Gated()
    with served(matcher, Limits(batch=4)) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        first = crowd.ask(0)
        until(lambda: len(matcher.batches) == 1)
        others = [crowd.ask(number) for number in range(1, 7)]
        until(lambda: metric(url, "lvlm_guard_maskd_waiting") == 6)
        matcher.gate.set()
        assert all(right(answer.result(), number) for number, answer in enumerate([first, *others]))
        assert [len(batch) for batch in matcher.batches] == [1, 4, 2]


def test_equal_questions_that_meet_are_matched_once() -> None:
    matcher = Gated()
    with served(matcher) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        answers = [crowd.ask(0) for _ in range(5)]
        until(lambda: metric(url, "lvlm_guard_maskd_joined_total") == 4)
        matcher.gate.set()
        assert all(right(answer.result(), 0) for answer in answers)
        assert sum(map(len, matcher.batches)) == 1


def test_a_full_queue_is_503_at_once_and_says_when_to_come_back() -> None:
    matcher = Gated()
    with served(matcher, Limits(queue=2)) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        taken = [crowd.ask(0)]
        until(lambda: len(matcher.batches) == 1)
        taken += [crowd.ask(1), crowd.ask(2)]
        until(lambda: metric(url, "lvlm_guard_maskd_waiting") == 2)
        refused = asked(url, 3)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(url, "lvlm_guard_maskd_busy_total") == 1
        matcher.gate.set()
        assert all(right(answer.result(), number) for number, answer in enumerate(taken))
        assert right(asked(url, 3), 3)


def test_after_the_deadline_it_is_503_and_the_place_in_the_queue_is_free() -> None:
    matcher = Gated()
    with served(matcher, Limits(deadline=0.4, queue=1)) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        running = crowd.ask(0)
        until(lambda: len(matcher.batches) == 1)
        waiting = crowd.ask(1)
        for late in (running.result(), waiting.result()):
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) >= 1
        assert metric(url, "lvlm_guard_maskd_waiting") == 0
        matcher.gate.set()
        until(lambda: metric(url, "lvlm_guard_maskd_batch_asks_count") == 1)
        # what was in the matcher is remembered, what only waited was never matched
        assert right(asked(url, 0), 0)
        assert len(matcher.batches) == 1


def test_a_client_that_goes_away_leaves_the_queue() -> None:
    matcher = Gated()
    with served(matcher) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        running = crowd.ask(0)
        until(lambda: len(matcher.batches) == 1)
        body = json.dumps({"image": base64.b64encode(png(1)).decode(), "question": "is it red?"}).encode()
        head = b"POST /mask HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as leaving:
            leaving.sendall(head + body)
            until(lambda: metric(url, "lvlm_guard_maskd_waiting") == 1)
        until(lambda: metric(url, "lvlm_guard_maskd_waiting") == 0)
        matcher.gate.set()
        assert right(running.result(), 0)
        assert matcher.batches == [["is there a dog in the image?"]]
        assert metric(url, "lvlm_guard_maskd_held_bytes") == 0


def test_a_client_that_goes_away_takes_no_answer_from_another_with_the_same_question() -> None:
    async def run() -> None:
        gate = threading.Event()

        def work(asks: object) -> list[Outcome]:
            gate.wait(30)
            return [Answer("answer")]

        batcher = Batcher(work, Limits(), Metrics())
        ask = Ask.about("mask", b"x", ("q",))
        leaving, staying = asyncio.create_task(batcher.ask(ask)), asyncio.create_task(batcher.ask(ask))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        assert await staying == Answer("answer")
        await batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b'{"image": "'])
def test_a_client_that_never_finishes_its_request_is_408(sent: bytes) -> None:
    with served(Gated(), Limits(reading=0.3)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as slow:
            slow.sendall(b"POST /mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + sent)
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert right(asked(url, 0), 0)


def test_requests_that_fill_the_memory_set_aside_are_503_and_it_is_given_back() -> None:
    matcher = Gated()
    with served(matcher, Limits(body=1 << 20, held=1 << 20)) as url:
        unfinished = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        unfinished.sendall(b"POST /mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1_048_000)
        until(lambda: metric(url, "lvlm_guard_maskd_held_bytes") >= 1_048_000)
        refused = asked(url, 0)
        assert refused.status_code == 503
        assert "memory" in refused.json()["error"]["message"]
        unfinished.close()
        until(lambda: metric(url, "lvlm_guard_maskd_held_bytes") == 0)
        assert right(asked(url, 0), 0)


class Faulty(Gated):
    """Fails on whole batches that hold one text."""

    def __call__(self, images: list[Image.Image], texts: list[str]) -> list[Match]:  # type: ignore[override]
        if "boom" in texts:
            raise RuntimeError("secret detail")
        return super().__call__(images, texts)


def test_one_fault_of_the_matcher_leaves_the_others_of_its_batch_alone(caplog: pytest.LogCaptureFixture) -> None:
    matcher = Faulty()
    with served(matcher) as url:
        matcher.gate.clear()
        crowd = Crowd(url)
        first = crowd.ask(0)
        until(lambda: len(matcher.batches) == 1)
        asks = [(1, "is there a dog in the image?"), (2, "boom"), (3, "..."), (4, "is it red?")]
        answers = [crowd.ask(*ask) for ask in asks]
        until(lambda: metric(url, "lvlm_guard_maskd_waiting") == 4)
        matcher.gate.set()
        assert right(first.result(), 0)
        good, boom, empty, last = (answer.result() for answer in answers)
        assert right(good, *asks[0])
        assert right(last, *asks[3])
        assert (boom.status_code, empty.status_code) == (500, 400)
        assert "secret" not in boom.text
        assert "secret detail" in caplog.text


class MapsOnly(Matcher):
    """Gives masks and no scores."""

    version = "maps only"

    def __call__(self, images: list[Image.Image], texts: list[str]) -> list[Match]:  # type: ignore[override]
        return load_matcher("embedded")(images, texts)


def test_a_matcher_without_scores_says_so() -> None:
    with served(MapsOnly()) as url:
        fields = {"image": base64.b64encode(png(0)).decode(), "claims": ["is there a dog in the image?"]}
        answer = httpx.post(url + "/scores", json=fields, trust_env=False)
        assert answer.status_code == 501
        assert "no probabilities" in answer.json()["error"]["message"]
        assert right(asked(url, 0), 0)


def test_at_the_end_what_waits_is_told_and_what_runs_is_answered() -> None:
    matcher = Gated()
    results: list[int] = []

    async def run() -> None:
        batcher = Batcher(Matching(matcher, Limits()), Limits(), Metrics())
        matcher.gate.clear()
        running = asyncio.create_task(batcher.ask(Ask.about("mask", png(0), ("is it red?",))))
        await asyncio.to_thread(until, lambda: len(matcher.batches) == 1)
        waiting = asyncio.create_task(batcher.ask(Ask.about("mask", png(1), ("is it red?",))))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(Refused) as told:
            await waiting
        results.append(told.value.status)
        matcher.gate.set()
        await closing
        assert (
            unpack_mask((await running).text) == load_matcher("embedded")([scene(0)], ["is it red?"])[0].keep.numpy()
        ).all()
        with pytest.raises(Refused):
            await batcher.ask(Ask.about("mask", png(2), ("is it red?",)))

    asyncio.run(run())
    assert results == [503]


def test_an_idle_batcher_closes() -> None:
    async def run() -> None:
        await asyncio.wait_for(Batcher(Matching(Gated(), Limits()), Limits(), Metrics()).close(), 10)

    asyncio.run(run())


def test_pictures_are_decoded_no_more_at_once_than_the_limit_allows() -> None:
    matcher = Gated()
    size = scene(0).width * scene(0).height
    matching = Matching(matcher, Limits(pixels=2 * size))
    asks = [Ask.about("mask", png(number // 2), (f"is it {number}?",)) for number in range(10)]
    outcomes = matching(asks)
    assert [len(batch) for batch in matcher.batches] == [4, 4, 2]
    for ask, (number, text) in zip(asks, enumerate(outcomes), strict=True):
        (match,) = load_matcher("embedded")([scene(number // 2)], [ask.texts[0]])
        assert isinstance(text, Answer)
        np.testing.assert_array_equal(unpack_mask(text.text), match.keep.numpy())


def test_masks_and_scores_of_one_batch_go_to_those_who_asked() -> None:
    claims = ("is there a dog in the image?", "is there a car in the image?")
    asks = [
        Ask.about("scores", png(0), claims),
        Ask.about("mask", png(1), ("is it red?",)),
        Ask.about("mask", b"no picture", ("is it red?",)),
        Ask.about("scores", png(2), claims[:1]),
    ]
    first, mask, error, last = Matching(load_matcher("embedded"), Limits())(asks)
    support = load_matcher("embedded").support
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)
    assert isinstance(mask, Answer)
    assert unpack_scores(first.text) == pytest.approx(
        dict(zip(claims, support(scene(0), claims).tolist(), strict=True))
    )
    assert unpack_scores(last.text) == pytest.approx({claims[0]: float(support(scene(2), claims[:1]))})
    assert unpack_mask(mask.text).shape == (96, 96)
    assert isinstance(error, Exception)
    assert "no picture" in str(error)


def test_the_memory_of_answers_is_bounded() -> None:
    calls: list[int] = []

    def work(asks: list[Ask]) -> list[Outcome]:
        calls.append(len(asks))
        return [Answer("x" * 1000) for _ in asks]

    async def run() -> None:
        batcher = Batcher(work, Limits(cache=10_000), Metrics())  # type: ignore[arg-type]
        asks = [Ask.about("mask", bytes([n]), ("q",)) for n in range(20)]
        for ask in asks:
            await batcher.ask(ask)
        await batcher.ask(asks[-1])
        assert len(calls) == 20
        await batcher.ask(asks[0])
        assert len(calls) == 21
        await batcher.close()

    asyncio.run(run())


def test_a_batch_that_fails_does_not_end_the_queue() -> None:
    outcomes: list[list[Outcome]] = [[Answer("fine")]]

    def work(asks: Sequence[Ask]) -> list[Outcome]:
        if asks[0].image == b"a":
            raise MemoryError("no more")
        return outcomes.pop()

    async def run() -> None:
        batcher = Batcher(work, Limits(), Metrics())
        with pytest.raises(MemoryError):
            await batcher.ask(Ask.about("mask", b"a", ("q",)))
        assert await batcher.ask(Ask.about("mask", b"b", ("q",))) == Answer("fine")
        await batcher.close()

    asyncio.run(run())


def test_a_matcher_that_fails_at_everything_ends_its_process_and_one_that_recovers_does_not() -> None:
    """A poisoned CUDA context fails in every later call; a picture that is none says nothing about the matcher."""
    wrong: list[Exception | None] = [RuntimeError("CUDA error"), RuntimeError("CUDA error"), None]
    wrong += [ImageError("no picture")] * 4 + [RuntimeError("CUDA error")] * 3
    ended: list[int] = []

    def work(asks: Sequence[Ask]) -> list[Outcome]:
        return [wrong[asks[0].image[0]] or Answer("fine")]

    async def run() -> None:
        batcher = Batcher(work, Limits(failures=3), Metrics(), lambda: ended.append(len(asked)))
        asked: list[int] = []
        for number in range(len(wrong)):
            asked.append(number)
            await asyncio.gather(batcher.ask(Ask.about("mask", bytes([number]), ("q",))), return_exceptions=True)
        await batcher.close()

    asyncio.run(run())
    assert ended == [len(wrong)]


def test_a_picture_may_be_as_large_as_elsewhere() -> None:
    # written out in the settings, which `--help` reads: lvlm_guard.images loads Pillow
    assert Limits().pixels == MAX_PIXELS
