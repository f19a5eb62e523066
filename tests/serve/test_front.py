"""The front before a stand-in for vLLM and a stand-in for the matcher service, asked over HTTP by the real client."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from front_server import data_url, expected_mask, expected_score, picture, turn
from front_site import CHAT, GUARDS, IMAGE, KEY, QUESTION, Site
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from lvlm_guard.matching.voting import QUESTION as ASKED
from lvlm_guard.proof import check, proof_of
from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.vote.ballot import ballot_of, claims_of
from lvlm_guard.serve.wire import unpack_mask, unpack_scores


@pytest.fixture(scope="module")
def one_site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def site(one_site: Site) -> Site:
    one_site.forget()
    return one_site


@pytest.fixture(scope="module")
def closed() -> Iterator[Site]:
    """A site for requests that must not reach what stands behind the front: nothing else is asked there."""
    with ExitStack() as stack:
        yield Site(stack)


def test_the_openai_client_gets_a_guarded_answer_that_proves_it(site: Site) -> None:
    raw = site.openai.chat.completions.with_raw_response.create(
        model="tiny-agla", messages=CHAT, extra_body={"vllm_xargs": {"agla_alpha": 1.5}}, n=2, seed=3
    )
    answer = raw.parse()
    proof = proof_of(raw.headers, answer.model_dump())
    checked = check("tiny-agla", "agla", {"alpha": 1.5, "beta": 0.5}, proof)
    assert checked.knobs["mask"] == "stand-in@1"
    assert raw.headers["x-agla"] == "on; alpha=1.5; beta=0.5; mask=stand-in@1"
    assert answer.model == "tiny-agla"
    assert len(answer.choices) == 2
    (sent,) = site.engine.bodies
    assert sent == json.loads(answer.choices[0].message.content or "")
    assert sent["vllm_xargs"] == {"guard": "agla", "guard_alpha": 1.5, "guard_beta": 0.5}
    assert (sent["model"], sent["seed"], sent["messages"]) == ("tiny", 3, CHAT)
    assert list(sent["mm_processor_kwargs"]) == ["guard_mask"]
    np.testing.assert_array_equal(
        unpack_mask(sent["mm_processor_kwargs"]["guard_mask"]), expected_mask(IMAGE, QUESTION)
    )


def test_the_plain_name_is_left_alone_and_says_so(site: Site) -> None:
    answer = site.post("tiny", temperature=0.5)
    check("tiny", None, {}, proof_of(answer.headers, answer.json()))
    assert {answer.headers[f"x-{guard}"] for guard in GUARDS} == {"off"}
    assert answer.json()["lvlm_guard"] == {"method": None, "knobs": {}}
    assert site.engine.bodies == [{"model": "tiny", "messages": CHAT, "temperature": 0.5}]
    assert site.matcher.asked == []


@pytest.mark.parametrize(
    ("guard", "views"), [("vcd", {"guard_noise": {"step": 500, "seed": 0}}), ("apc", None)]
)  # fmt: skip
def test_guards_without_a_matcher_ask_none(site: Site, guard: str, views: Any) -> None:
    answer = site.post(f"tiny-{guard}")
    proof = proof_of(answer.headers, answer.json())
    check(f"tiny-{guard}", guard, {"beta": 0.1 if guard == "vcd" else 0.5}, proof)
    assert site.engine.bodies[0]["vllm_xargs"]["guard"] == guard
    assert site.engine.bodies[0].get("mm_processor_kwargs") == views
    assert site.matcher.asked == []


@pytest.mark.parametrize("question", [QUESTION, "describe the picture"])
def test_vote_gets_the_scores_of_the_question_or_of_the_vocabulary(site: Site, question: str) -> None:
    answer = site.post("tiny-vote", [turn(question, data_url(IMAGE))], vllm_xargs={"vote_lam": 0.5})
    proof = proof_of(answer.headers, answer.json())
    check("tiny-vote", "vote", {"lam": 0.5, "beta": 0.1}, proof)
    sent = site.engine.bodies[0]
    assert "mm_processor_kwargs" not in sent
    scores = unpack_scores(sent["vllm_xargs"]["guard_scores"])
    assert scores == {claim: expected_score(IMAGE, claim) for claim in claims_of(question)}
    ballot = ballot_of(sent["vllm_xargs"])
    assert ballot is not None
    assert (ballot.lam, ASKED in ballot.support) == (0.5, question == QUESTION)


@pytest.mark.parametrize(("n", "usage"), [(1, False), (3, True)])
def test_a_stream_proves_itself_in_its_first_and_last_chunks(site: Site, n: int, usage: bool) -> None:
    with site.openai.chat.completions.with_streaming_response.create(
        model="tiny-agla", messages=CHAT, stream=True, n=n, stream_options={"include_usage": usage}
    ) as raw:
        headers, lines = raw.headers, [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["model"] for chunk in chunks} == {"tiny-agla"}
    marked = [chunk for chunk in chunks if "lvlm_guard" in chunk]
    assert chunks[0] in marked
    assert chunks[-1] in marked
    assert len(marked) == 1 + n + usage
    for chunk in marked:
        check("tiny-agla", "agla", {"alpha": 2}, proof_of(headers, chunk))
    words = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert words == "one two three" * n


def test_the_mask_follows_the_last_question_over_several_turns(site: Site) -> None:
    chat = [*CHAT, {"role": "assistant", "content": "no"}, {"role": "user", "content": "and a cat?"}]
    assert site.post(messages=chat).status_code == 200
    mask = unpack_mask(site.engine.bodies[0]["mm_processor_kwargs"]["guard_mask"])
    np.testing.assert_array_equal(mask, expected_mask(IMAGE, "and a cat?"))
    assert site.matcher.asked == ["and a cat?"]


def test_a_text_alone_under_a_guarded_name_is_answered_plainly_and_says_why(site: Site) -> None:
    answer = site.post(messages=[{"role": "user", "content": "hello"}])
    assert answer.headers["x-agla"] == "off"
    assert answer.json()["lvlm_guard"]["method"] is None
    assert "no picture" in answer.json()["lvlm_guard"]["why"]
    assert not {"vllm_xargs", "mm_processor_kwargs"} & set(site.engine.bodies[0])
    assert site.count("lvlm_guard_unneeded_total") == 1


@pytest.mark.slow
def test_two_pictures_are_refused_unless_the_server_takes_them_and_then_each_has_its_mask() -> None:
    other = picture(1)
    chat = [turn("what is this?", data_url(IMAGE)), turn("what differs?", data_url(other))]
    with ExitStack() as stack:
        site = Site(stack)
        assert site.post(messages=chat).status_code == 400
        assert site.engine.bodies == []
    with ExitStack() as stack:
        site = Site(stack, most_pictures=2)
        assert site.post(messages=chat).status_code == 200
        masks = site.engine.bodies[0]["mm_processor_kwargs"]["guard_mask"]
        for mask, image in zip(masks, (IMAGE, other), strict=True):
            np.testing.assert_array_equal(unpack_mask(mask), expected_mask(image, "what differs?"))
        assert site.post("tiny-vote", [*chat, turn("is there a dog?")]).status_code == 200
        scores = unpack_scores(site.engine.bodies[1]["vllm_xargs"]["guard_scores"])
        assert scores == {QUESTION: max(expected_score(image, QUESTION) for image in (IMAGE, other))}


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


@pytest.mark.parametrize("fails", [500, 501, 503, 429, 302])
def test_without_a_mask_there_is_an_error_and_never_an_answer(site: Site, fails: int) -> None:
    site.matcher.fails = fails
    for model in ("tiny-agla", "tiny-vote"):
        answer = site.post(model)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) == (7 if fails == 503 else 30)
        assert site.matcher_url not in answer.text
    assert site.engine.bodies == []
    assert site.post("tiny").status_code == 200
    site.matcher.fails = 0
    assert site.post().status_code == 200


def test_a_spoilt_mask_is_an_error(site: Site) -> None:
    site.matcher.spoilt = True
    assert site.post().status_code == 503
    assert site.engine.bodies == []


@pytest.mark.slow
def test_a_matcher_service_that_is_down_or_too_slow_is_an_error() -> None:
    with ExitStack() as stack:
        site = Site(stack, maskd_url="http://127.0.0.1:1")
        with pytest.raises(openai.InternalServerError) as error:
            site.openai.chat.completions.create(model="tiny-agla", messages=CHAT)
        assert error.value.status_code == 503
    with ExitStack() as stack:
        site = Site(stack, maskd_seconds=0.2)
        site.matcher.slow = 5
        assert site.post().status_code == 503
        assert site.engine.bodies == []


def test_the_same_question_about_the_same_picture_is_matched_once(site: Site) -> None:
    for _ in range(3):
        site.post()
    site.post(messages=[turn(QUESTION, data_url(picture(1)))])
    site.post(messages=[turn("another?", data_url(IMAGE))])
    assert len(site.matcher.asked) == 3
    assert site.count("lvlm_guard_front_asked_total") == 5
    assert site.count("lvlm_guard_front_cache_hits_total") == 2
    assert site.count("lvlm_guard_requests_total", guard="agla") == 5
    assert site.count("lvlm_guard_matcher_seconds_count", guard="agla") == 5
    assert b"lvlm_guard_requests_total" in generate_latest(site.registry)


def test_an_error_of_the_engine_passes_as_it_is_and_is_not_called_guarded(site: Site) -> None:
    site.engine.status = 400
    answer = site.post()
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "engine")
    assert answer.headers["x-agla"] == "refused"
    assert site.count("lvlm_guard_requests_total", guard="agla") == 0


@pytest.mark.parametrize("media", ["text/html", "application/octet-stream", ""])
def test_an_answer_that_can_t_carry_the_proof_is_not_given(site: Site, media: str) -> None:
    site.engine.media = media
    answer = site.post()
    assert (answer.status_code, answer.headers["x-agla"]) == (502, "refused")


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


def test_a_client_that_leaves_while_its_mask_is_made_costs_no_answer(site: Site) -> None:
    site.matcher.slow = 5
    _leave(site)
    _until(lambda: site.count("lvlm_guard_disconnects_total") == 1 and site.matcher.given_up == 1)
    assert site.engine.bodies == []
    site.matcher.slow = 0
    assert site.post().status_code == 200


def test_a_client_that_leaves_while_the_engine_works_is_noticed_by_the_engine(site: Site) -> None:
    site.engine.hold = True
    _leave(site)
    _until(lambda: site.engine.left == 1)


@pytest.mark.slow
def test_more_requests_than_are_read_at_once_are_told_to_come_back() -> None:
    with ExitStack() as stack:
        site = Site(stack, guarded_at_once=2)
        site.matcher.slow = 0.5
        with ThreadPoolExecutor(6) as pool:
            chats = [[turn(f"number {i}?", data_url(IMAGE))] for i in range(6)]
            answers = list(pool.map(lambda chat: site.post(messages=chat), chats))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200, 200, 503, 503, 503, 503]
        assert site.post().status_code == 200


def test_many_clients_at_once_each_get_their_own_guard_mask_and_knobs(site: Site) -> None:
    def ask(i: int) -> tuple[int, dict[str, Any], httpx.Headers]:
        model = ("tiny", "tiny-agla", "tiny-vote")[i % 3]
        xargs = {} if model == "tiny" else {"vllm_xargs": {f"{model[5:]}_beta": (i + 1) / 100}}
        answer = site.post(model, [turn(f"is number {i} here?", data_url(picture(i)))], **xargs)
        return i, json.loads(answer.json()["choices"][0]["message"]["content"]), answer.headers

    with ThreadPoolExecutor(16) as pool:
        for i, sent, headers in pool.map(ask, range(48)):
            guard = (None, "agla", "vote")[i % 3]
            assert sent.get("vllm_xargs", {}).get("guard") == guard
            assert headers["x-agla"].startswith("on") if guard == "agla" else guard or headers["x-agla"] == "off"
            if guard:
                assert f"beta={(i + 1) / 100!r};" in headers[f"x-{guard}"]
                assert sent["vllm_xargs"]["guard_beta"] == (i + 1) / 100
            if guard == "agla":
                mask = unpack_mask(sent["mm_processor_kwargs"]["guard_mask"])
                np.testing.assert_array_equal(mask, expected_mask(picture(i), f"is number {i} here?"))


def test_the_engine_and_the_matcher_get_the_very_same_file() -> None:
    turned = picture(2, "JPEG")
    with ExitStack() as stack:
        site = Site(stack)
        exif = Image.Exif()
        exif[0x0112] = 6
        site.post(messages=[turn(QUESTION, data_url(picture(3, "JPEG", exif=exif), "image/jpeg"))])
        url = site.engine.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
        sent = base64.b64decode(url.partition(",")[2])
        mask = unpack_mask(site.engine.bodies[0]["mm_processor_kwargs"]["guard_mask"])
        np.testing.assert_array_equal(mask, expected_mask(sent, QUESTION))
        site.post(messages=[turn(QUESTION, data_url(turned, "image/jpeg"))])
        assert site.engine.bodies[1]["messages"][0]["content"][0]["image_url"]["url"] == data_url(turned, "image/jpeg")


def _raw(site: Site, head: str) -> str:
    """Send a head by hand, and return what comes back."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        received = b""
        while not received.endswith(b"}") and (piece := connection.recv(65536)):
            received += piece
        return received.decode()


def _leave(site: Site) -> None:
    """Ask, and hang up while nothing has come back."""

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            site.http.post("/v1/chat/completions", json={"model": "tiny-agla", "messages": CHAT}, timeout=0.4)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


def _until(true: Any) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
