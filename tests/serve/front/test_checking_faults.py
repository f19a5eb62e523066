"""A front of checks before stand-ins that say anything: what can't be checked is an error, and never an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from checking_site import KEY, UPSTREAM_KEY, Site
from front_attacks import of_frames
from front_server import EngineStandIn, MatcherStandIn, data_url, expected_score, picture, serving, turn
from front_site import IMAGE

from lvlm_guard.verify.verdict import Thresholds


class Stands:
    """A front of checks before stand-ins."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self.engine, self.matcher = EngineStandIn(("embedded",)), MatcherStandIn()
        self.site = Site(
            stack,
            stack.enter_context(serving(self.engine.app())),
            stack.enter_context(serving(self.matcher.app())),
            **options,
        )


@pytest.fixture(scope="module")
def one_stand() -> Iterator[Stands]:
    with ExitStack() as stack:
        yield Stands(stack, upstream_at_once=2, most_answers=5)


@pytest.fixture
def stand(one_stand: Stands) -> Stands:
    vars(one_stand.engine).update(vars(EngineStandIn(("embedded",))))
    vars(one_stand.matcher).update(vars(MatcherStandIn()))
    return one_stand


def test_what_can_t_be_checked_is_an_error_and_costs_the_upstream_nothing(stand: Stands) -> None:
    ask = stand.site.post
    assert ask("embedded-verify", [{"role": "user", "content": "hello"}]).status_code == 400
    damaged = [turn("what is this?", data_url(IMAGE[:40]))]
    for model in ("embedded-verify", "embedded-best"):
        assert ask(model, damaged).status_code == 400
        stand.matcher.fails = 500
        answer = ask(model, [turn("what is this?", data_url(IMAGE))])
        assert (answer.status_code, answer.headers["x-check"]) == (503, "refused")
        stand.matcher.fails = 0
    assert ask("embedded", damaged).status_code == 400
    assert stand.engine.bodies == []


@pytest.mark.parametrize(
    "fields",
    [
        {"lvlm_guard_n": 0}, {"lvlm_guard_n": 6}, {"lvlm_guard_n": "4"}, {"lvlm_guard_n": 1e9}, {"n": 2}, {"seed": "x"},
        {"vllm_xargs": {"agla_alpha": 1}}, {"mm_processor_kwargs": {"a": 1}}, {"use_beam_search": True}, {"fishy": 1},
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused(stand: Stands, fields: dict[str, Any]) -> None:
    assert stand.site.post("embedded-best", [turn("what?", data_url(IMAGE))], **fields).status_code == 400
    assert stand.engine.bodies == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_matcher_that_fails_once_the_model_has_answered_leaves_no_unchecked_answer(
    stand: Stands, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = stand.engine._pieces

    async def naming(body: Any) -> Any:
        stand.matcher.fails = 503
        async for piece in pieces(body):
            yield piece.replace(b" two", b" dog")

    monkeypatch.setattr(stand.engine, "_pieces", naming)
    said = [turn("what is this? a dog", data_url(IMAGE))]
    if stream:
        with (
            pytest.raises(openai.APIError, match="not checked"),
            stand.site.openai.chat.completions.create(model="embedded-verify", messages=said, stream=True) as events,
        ):
            assert all(event.choices[0].finish_reason is None for event in events)
    else:
        stand.engine.breaks = True  # so that it answers by `naming`
        assert stand.site.post("embedded-verify", said).status_code in (502, 503)
    assert len(stand.engine.bodies) == 1


@pytest.mark.parametrize("deep", [False, True])
def test_a_stream_that_breaks_off_or_can_t_be_read_has_no_verdicts_and_no_end(
    stand: Stands, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nested(body: Any) -> Any:
        yield b"data: " + b"[" * 100_000 + b"\n\n"

    if deep:
        monkeypatch.setattr(stand.engine, "_pieces", nested)
    stand.engine.breaks = True
    with pytest.raises(openai.APIError, match="not checked"):
        list(
            stand.site.openai.chat.completions.create(
                model="embedded-verify", messages=[turn("what?", data_url(IMAGE))], stream=True
            )
        )


@pytest.mark.parametrize("template", [None, "a photo of {article} {object}."])
def test_events_of_any_dialect_are_read_and_several_pictures_and_choices_checked_as_the_matcher_knows_objects_best(
    template: str | None,
) -> None:
    sent: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(start)
        for piece in sent:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def chunk(index: int, text: str | None, end: str | None = None) -> bytes:
        delta = {} if text is None else {"content": text}
        choice = {"index": index, "delta": delta, "finish_reason": end}
        return json.dumps({"id": "x", "choices": [choice], "model": "other"}, ensure_ascii=False).encode()

    usage = json.dumps({"id": "x", "choices": [], "usage": {"total_tokens": 3}}).encode()
    raw = b": hello\r\n\r\n" + b"".join(
        b"event: piece\r\ndata:" + data + b"\r\n\r\n"
        for data in (
            chunk(0, "a do"), chunk(1, "two\u2028 \x85"), chunk(0, "g"), chunk(1, " c"), chunk(1, "ats", "stop"),
            chunk(0, None, "length"), usage, b"[DONE]",
        )
    )  # fmt: skip
    sent += [raw[i : i + 7] for i in range(0, len(raw), 7)]
    other = picture(1)
    with ExitStack() as stack:
        matcher = MatcherStandIn(template=template)
        site = Site(
            stack,
            stack.enter_context(serving(app)) + "/deep/v1",
            stack.enter_context(serving(matcher.app())),
            most_pictures=2,
        )
        asked = [turn("what?", data_url(IMAGE), data_url(other))]
        events = site.post("embedded-verify", asked, stream=True).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    *_, last = [json.loads(event[6:]) for event in events[:-2]]
    assert last["usage"] == {"total_tokens": 3}
    found = {one["object"]: one for one in last["lvlm_guard"]["verdicts"]}
    assert [(one["choice"], one["start"], one["end"]) for one in found.values()] == [(0, 2, 5), (1, 7, 11)]
    for name, one in found.items():
        claim = (template or "is there {article} {object} in the image?").format(article="a", object=name)
        p = max(expected_score(IMAGE, claim), expected_score(other, claim))
        assert one["probability"] == p
        label = Thresholds().label(p, 0)
        assert one["label"] == {"unsure": "unknown"}.get(label, label)


def test_the_upstream_is_asked_no_more_at_once_than_is_allowed(stand: Stands) -> None:
    stand.engine.slow = 0.2
    now = most = 0
    chat = stand.engine._chat

    async def counted(request: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await chat(request)
        finally:
            now -= 1

    stand.engine._chat = counted  # type: ignore[method-assign]
    with ExitStack() as stack:
        url = stack.enter_context(serving(stand.engine.app()))
        site = Site(stack, url, stack.enter_context(serving(stand.matcher.app())), upstream_at_once=2)
        seen = site.post("embedded-best", [turn("what?", data_url(IMAGE))], lvlm_guard_n=1)
        assert seen.status_code == 200
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(site.post, "embedded", [turn("what?", data_url(IMAGE))]) for _ in range(8)]
            assert {one.result().status_code for one in asked} == {200}
    assert most <= 2


def test_attacks_that_a_front_of_guards_refuses_are_refused_here_too(stand: Stands) -> None:
    bomb, blanks = of_frames(4000), "a" + " " * 100_000 + "b"
    with httpx.Client(base_url=stand.site.url, trust_env=False, timeout=30) as stranger:
        for path in ("/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/audio/speech", "/v1/files"):
            assert stranger.post(path, json={}).status_code == 404
        assert stranger.post("/v1/chat/completions", json={}).status_code == 401
        assert stranger.get("/v1/models").status_code == 401
    for model in ("embedded", "embedded-verify", "embedded-best"):
        began = time.monotonic()
        assert stand.site.post(model, [turn("what?", data_url(bomb, "image/tiff"))]).status_code == 400
        assert stand.site.post(model, [turn("what?", "http://169.254.169.254/x.png")]).status_code == 400
        assert stand.site.post(model, [turn("what?", "file:///etc/passwd")]).status_code == 400
        assert stand.engine.bodies == []
        assert stand.site.post(model, [turn(blanks, data_url(IMAGE))]).status_code == 200
        assert time.monotonic() - began < 8
        stand.engine.bodies.clear()
    forged = {"Authorization": f"Bearer {KEY}", "X-Vllm-Priority": "-5", "X-Check": "verify; scores=x", "Cookie": "a=b"}
    body = {"model": "embedded", "messages": [turn("what?", data_url(IMAGE))]}
    answer = httpx.post(f"{stand.site.url}/v1/chat/completions", json=body, headers=forged, trust_env=False)
    assert answer.headers.get_list("x-check") == ["off"]
    assert not {"x-vllm-priority", "x-check", "cookie"} & set(stand.engine.headers[-1])
    assert stand.engine.headers[-1]["authorization"] == f"Bearer {UPSTREAM_KEY}"


def test_it_is_ready_while_matcher_and_upstream_are(stand: Stands) -> None:
    def status(path: str) -> int:
        return httpx.get(stand.site.url + path, trust_env=False).status_code

    assert (status("/health"), status("/ready"), status("/metrics")) == (200, 200, 200)
    stand.matcher.fails = 503
    assert (status("/health"), status("/ready")) == (200, 503)
