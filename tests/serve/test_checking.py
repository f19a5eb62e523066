"""Checks of answers that a second real server gives: the embedded model on plain transformers, never guarded."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from front_attacks import of_frames
from front_server import EngineStandIn, MatcherStandIn, data_url, expected_score, serving, turn
from front_site import IMAGE
from maskd_service import served
from openai_endpoint import OpenAIEndpoint, Reply, Request, load
from PIL import Image
from prometheus_client import CollectorRegistry
from sklearn.metrics import roc_auc_score

from lvlm_guard.evals.tasks.world import NOUNS, world_chair
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.proof import check, proof_of
from lvlm_guard.serve.front.checking import CheckingFront
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.vote.ballot import OBJECTS
from lvlm_guard.verify import verify_answer
from lvlm_guard.verify.verdict import Thresholds

KEY, UPSTREAM_KEY = "what clients send", "sk-the-upstreams-own-key"
PICTURES = 150
SCENES = world_chair(PICTURES)


def png(number: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(SCENES.scenes.image[number]).save(held, "PNG")
    return held.getvalue()


def caption(number: int) -> list[Any]:
    return [turn(SCENES.prompt, data_url(png(number)))]


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


@pytest.fixture(scope="module", autouse=True)
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("objects") / "objects.txt"
    place.write_text("\n".join(NOUNS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OBJECTS, str(place))
        yield


@pytest.fixture(scope="module")
def endpoint() -> Iterator[OpenAIEndpoint]:
    with OpenAIEndpoint(load(), (), UPSTREAM_KEY) as made:
        yield made


@pytest.fixture(scope="module")
def site(endpoint: OpenAIEndpoint) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, endpoint.url, stack.enter_context(served(load_matcher("embedded"))))


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


@pytest.mark.parametrize("pictures", [6, pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_verdicts_are_those_of_the_verifier_in_this_process_and_tell_what_is_there(site: Site, pictures: int) -> None:
    matcher, vocabulary = load_matcher("embedded"), Vocabulary.of(list(NOUNS))
    true, p = [], []
    for number in range(pictures):
        raw = site.openai.chat.completions.with_raw_response.create(
            model="embedded-verify", messages=caption(number), max_tokens=40, temperature=0
        )
        answer = raw.parse()
        text, told = answer.choices[0].message.content, answer.lvlm_guard  # type: ignore[attr-defined]
        wanted = verify_answer(matcher, [Image.fromarray(SCENES.scenes.image[number])], text, vocabulary, swaps=0)
        assert [(one["object"], one["start"], one["end"]) for one in told["verdicts"]] == [
            (it.mention.object, it.mention.start, it.mention.end) for it in wanted
        ]
        assert all(text[one["start"] : one["end"]] == one["text"] for one in told["verdicts"])
        np.testing.assert_allclose(
            [one["probability"] for one in told["verdicts"]], [it.verdict.p_supported for it in wanted], atol=1e-5
        )
        assert raw.headers["x-check"] == f"verify; scores={matcher.version}"
        assert answer.model == "embedded-verify"
        true += [one["object"] in SCENES.objects[number] for one in told["verdicts"]]
        p += [one["probability"] for one in told["verdicts"]]
    assert len(true) > 2 * pictures
    # `lvlm-guard eval verify --limit 600` prints .835 [.812, .858] for this matcher (docs/results/verify.json)
    assert pictures < PICTURES or roc_auc_score(true, p) == pytest.approx(0.835, abs=0.05)


def test_the_answer_itself_is_the_upstream_s_and_the_plain_name_passes_through(
    site: Site, endpoint: OpenAIEndpoint
) -> None:
    asked = {"messages": caption(0), "max_tokens": 40, "temperature": 0}
    with openai.OpenAI(base_url=endpoint.url, api_key=UPSTREAM_KEY) as direct:
        theirs = direct.chat.completions.create(model="embedded", **asked).model_dump()
    plain = site.openai.chat.completions.with_raw_response.create(model="embedded", **asked)
    assert plain.headers["x-check"] == "off"
    check("embedded", None, {}, proof_of(plain.headers, plain.parse().model_dump()))
    assert plain.parse().model_dump() == theirs
    verified = site.openai.chat.completions.create(model="embedded-verify", **asked).model_dump()
    check("embedded-verify", None, {}, proof_of({}, verified))  # a check is no guard
    assert {**verified, "model": "embedded", "lvlm_guard": theirs["lvlm_guard"]} == theirs


@pytest.mark.parametrize("model", ["embedded", "embedded-verify", "embedded-best"])
def test_a_stream_says_the_same_and_ends_with_the_verdicts(site: Site, model: str) -> None:
    asked: Any = {"model": model, "messages": caption(1), "max_tokens": 40, "temperature": 0, "seed": 0}
    whole = site.openai.chat.completions.create(**asked)
    with site.openai.chat.completions.with_streaming_response.create(**asked, stream=True) as raw:
        lines = [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    if model != "embedded":
        assert {chunk["model"] for chunk in chunks} == {model}
        assert chunks[-1]["lvlm_guard"]["verdicts"] == whole.lvlm_guard["verdicts"]  # type: ignore[attr-defined]
        assert len(chunks) > 5 or model == "embedded-best"


def test_the_best_answer_is_the_one_that_model_and_verifier_rank_first(site: Site, endpoint: OpenAIEndpoint) -> None:
    endpoint.seen.clear()
    answer = site.openai.chat.completions.create(
        model="embedded-best", messages=caption(2), max_tokens=40, temperature=1, seed=5,
        extra_body={"lvlm_guard_n": 3},
    )  # fmt: skip
    assert [request.body["n"] for request in endpoint.seen] == [3]
    rows = answer.lvlm_guard["candidates"]  # type: ignore[attr-defined]
    with openai.OpenAI(base_url=endpoint.url, api_key=UPSTREAM_KEY) as direct:
        theirs = direct.chat.completions.create(
            model="embedded", messages=caption(2), max_tokens=40, temperature=1, seed=5, n=3, logprobs=True
        )
    assert [row["text"] for row in rows] == [choice.message.content for choice in theirs.choices]
    logs = [np.mean([one.logprob for one in choice.logprobs.content]) for choice in theirs.choices]  # type: ignore[union-attr]
    np.testing.assert_allclose([row["log_prob"] for row in rows], logs, atol=1e-6)
    scores = 0.5 * (np.array(logs) - np.mean(logs)) / np.std(logs) - [row["doubt"] for row in rows]
    np.testing.assert_allclose([row["score"] for row in rows], scores, atol=1e-6)
    best = int(np.argmax(scores))
    assert answer.choices[0].message.content == rows[best]["text"]
    assert [row["chosen"] for row in rows] == [i == best for i in range(3)]
    assert answer.choices[0].logprobs is None
    assert len(answer.choices) == 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == theirs.usage.completion_tokens  # type: ignore[union-attr]


def test_an_upstream_that_gives_one_answer_a_request_or_no_log_probabilities_is_asked_more_often(
    site: Site, endpoint: OpenAIEndpoint
) -> None:
    def one_at_a_time(request: Request, reply: Reply) -> Reply:
        return replace(reply, body={**reply.body, "choices": reply.body["choices"][:1]})

    def neither(request: Request, reply: Reply) -> Reply:
        refused = {"n", "logprobs"} & set(request.body)
        return Reply(400, {"error": {"message": f"no {refused}"}}) if refused else reply

    for fault, many in ((one_at_a_time, 4), (neither, 5)):
        with endpoint.faulty(fault):
            answer = site.post("embedded-best", caption(3), temperature=1, seed=7).json()
            assert len(endpoint.seen) == many
        rows = answer["lvlm_guard"]["candidates"]
        assert len(rows) == 4
        assert len({row["text"] for row in rows}) > 1  # each has a seed of its own
        assert (rows[0]["log_prob"] is None) == (fault is neither)


def test_models_are_listed_with_their_checks(site: Site, endpoint: OpenAIEndpoint) -> None:
    listed = {card.id: card.lvlm_guard for card in site.openai.models.list()}  # type: ignore[attr-defined]
    assert listed == {
        "embedded": {"method": None, "check": None},
        "embedded-verify": {"method": None, "check": "verify"},
        "embedded-best": {"method": None, "check": "best"},
    }


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_upstream_is_passed_on_with_when_to_ask_again_but_never_its_key(
    site: Site, endpoint: OpenAIEndpoint, stream: bool
) -> None:
    def busy(request: Request, reply: Reply) -> Reply:
        told = {"error": {"message": f"too many requests by {UPSTREAM_KEY}"}}
        return Reply(429, told, {"Retry-After": "17"})

    with endpoint.faulty(busy):
        for model in ("embedded", "embedded-verify", "embedded-best"):
            answer = site.post(model, caption(0), temperature=0, seed=0, stream=stream)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "17")
            assert "too many requests by ***" in answer.text
            assert answer.headers["x-check"] == "refused"


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
    other = png(1)
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


def test_a_wrong_key_of_this_server_is_the_operator_s_trouble_and_not_the_client_s(endpoint: OpenAIEndpoint) -> None:
    with ExitStack() as stack:
        matcher = stack.enter_context(serving(MatcherStandIn().app()))
        site = Site(stack, endpoint.url, matcher, upstream_key="wrong")
        answer = site.post("embedded-verify", caption(0), temperature=0)
        assert (answer.status_code, "operator" in answer.text) == (502, True)
