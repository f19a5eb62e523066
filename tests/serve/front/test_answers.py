"""Guarded answers of a front over HTTP: what the engine was asked for, and the proof that the client gets."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
from front_server import data_url, expected_mask, expected_score, picture, turn
from front_site import CHAT, GUARDS, IMAGE, QUESTION, Site
from PIL import Image
from prometheus_client import generate_latest

from lvlm_guard.matching.voting import QUESTION as ASKED
from lvlm_guard.proof import check, proof_of
from lvlm_guard.serve.vote.ballot import ballot_of, claims_of
from lvlm_guard.serve.wire import unpack_mask, unpack_scores


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
            assert headers[f"x-{guard or 'agla'}"].startswith("on" if guard else "off")
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
