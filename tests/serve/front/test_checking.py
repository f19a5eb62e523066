"""Checks of answers that a second real server gives: the embedded model on plain transformers, never guarded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from checking_site import UPSTREAM_KEY, Site
from front_server import MatcherStandIn, data_url, serving, turn
from maskd_service import served
from openai_endpoint import OpenAIEndpoint, Reply, Request, load
from PIL import Image
from scipy.stats import mannwhitneyu

from lvlm_guard.embedded import world
from lvlm_guard.evals.tasks.world import NOUNS
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.proof import check, proof_of
from lvlm_guard.serve.vote.ballot import OBJECTS
from lvlm_guard.verify import verify_answer

PICTURES = 150
SCENES = world.scenes("test_cap", PICTURES)


def png(number: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(SCENES.image[number]).save(held, "PNG")
    return held.getvalue()


def caption(number: int) -> list[Any]:
    return [turn(world.CAPTION_PROMPT, data_url(png(number)))]


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


@pytest.mark.parametrize("pictures", [6, pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_verdicts_are_those_of_the_verifier_in_this_process_and_tell_what_is_there(site: Site, pictures: int) -> None:
    matcher, vocabulary = load_matcher("embedded"), Vocabulary.of(list(NOUNS))
    present, absent = [], []
    for number in range(pictures):
        raw = site.openai.chat.completions.with_raw_response.create(
            model="embedded-verify", messages=caption(number), max_tokens=40, temperature=0
        )
        answer = raw.parse()
        text, told = answer.choices[0].message.content, answer.lvlm_guard  # type: ignore[attr-defined]
        wanted = verify_answer(matcher, [Image.fromarray(SCENES.image[number])], text, vocabulary, swaps=0)
        assert [(one["object"], one["start"], one["end"]) for one in told["verdicts"]] == [
            (it.mention.object, it.mention.start, it.mention.end) for it in wanted
        ]
        assert all(text[one["start"] : one["end"]] == one["text"] for one in told["verdicts"])
        np.testing.assert_allclose(
            [one["probability"] for one in told["verdicts"]], [it.verdict.p_supported for it in wanted], atol=1e-5
        )
        assert raw.headers["x-check"] == f"verify; scores={matcher.version}"
        assert answer.model == "embedded-verify"
        seen = {NOUNS[shown] for shown in SCENES.visible(number)[0]}
        for one in told["verdicts"]:
            (present if one["object"] in seen else absent).append(one["probability"])
    assert len(present) + len(absent) > 2 * pictures
    # `lvlm-guard eval verify --limit 600` prints .835 [.812, .858] for this matcher (docs/results/verify.json)
    if pictures == PICTURES:
        area = mannwhitneyu(present, absent).statistic / (len(present) * len(absent))
        assert area == pytest.approx(0.835, abs=0.05)


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


def test_a_wrong_key_of_this_server_is_the_operator_s_trouble_and_not_the_client_s(endpoint: OpenAIEndpoint) -> None:
    with ExitStack() as stack:
        matcher = stack.enter_context(serving(MatcherStandIn().app()))
        site = Site(stack, endpoint.url, matcher, upstream_key="wrong")
        answer = site.post("embedded-verify", caption(0), temperature=0)
        assert (answer.status_code, "operator" in answer.text) == (502, True)
