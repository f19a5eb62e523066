"""What a request may hold: known fields, text and pictures, and the knobs of the guard that its name asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from front_server import data_url, picture, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.proof import KNOBS
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.fields import CLOSED, NEUTRAL
from lvlm_guard.serve.front.guards import method_of
from lvlm_guard.serve.front.requests import Asked, asked
from lvlm_guard.serve.front.settings import FrontSettings

RULES = FrontSettings(("tiny",), ("agla", "vcd", "apc", "vote"), maskd_url="http://127.0.0.1:1")
NAMES = RULES.every_name
IMAGE = data_url(picture())
CHAT = [turn("is there a dog?", IMAGE)]


def ask(model: str | None = "tiny-agla", messages: Any = CHAT, most_pictures: int = 1, **fields: Any) -> Asked:
    body = {"model": model, "messages": messages, **fields}
    request = asked(json.dumps(body).encode(), replace(RULES, most_pictures=most_pictures))
    method_of(NAMES.meant(model)[1], request.knobs)
    return request


def knobs(request: Asked) -> dict[str, float]:
    method = method_of(request.guard, request.knobs)
    return {} if method is None else {knob: getattr(method, knob) for knob in KNOBS[method.name]}


def refusal(raw: bytes | None = None, **fields: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        ask(**fields) if raw is None else asked(raw, RULES)
    return refused.value


@pytest.mark.parametrize("guard", [None, *KNOBS])
def test_a_name_asks_for_its_guard_with_the_knobs_of_the_transformers_engine(guard: str | None) -> None:
    request = ask("tiny" if guard is None else f"tiny-{guard}")
    defaults = {"agla": {"alpha": 2, "beta": 0.5}, "vcd": {"alpha": 1, "beta": 0.1}, "apc": {"beta": 0.5}}
    expected = {**defaults, "vote": {"lam": 1, "beta": 0.1}, None: {}}[guard]
    assert request.guard == guard
    assert knobs(request) == expected
    assert request.body["model"] == "tiny"


def test_knobs_are_taken_from_the_request_and_out_of_what_is_passed_on() -> None:
    request = ask(vllm_xargs={"agla_alpha": 1.5, "agla_beta": 1})
    assert knobs(request) == {"alpha": 1.5, "beta": 1}
    assert "vllm_xargs" not in request.body
    assert knobs(ask("tiny-vote", vllm_xargs={"vote_lam": 0})) == {"lam": 0, "beta": 0.1}


@pytest.mark.parametrize(
    ("model", "xargs"),
    [
        ("tiny-agla", {"agla_alpha": -1}), ("tiny-agla", {"agla_alpha": "2"}), ("tiny-agla", {"agla_alpha": True}),
        ("tiny-agla", {"agla_alpha": [2]}), ("tiny-agla", {"agla_alpha": None}), ("tiny-agla", {"agla_alpha": 1e308}),
        ("tiny-agla", {"agla_alpha": 10**400}), ("tiny-agla", {"agla_beta": 1.5}), ("tiny-agla", {"agla_beta": -0.1}),
        ("tiny-agla", {"agla_gamma": 1}), ("tiny-agla", {"vcd_alpha": 1}), ("tiny-agla", {"agla_mode": "official"}),
        ("tiny-agla", {"agla_matcher": "x"}), ("tiny-vote", {"vote_beta": 0}), ("tiny-vote", {"vote_alpha": 1}),
        ("tiny-agla", {"guard": "agla"}), ("tiny", {"guard": "agla"}), ("tiny", {"guard_alpha": 1}),
        ("tiny-vote", {"guard_scores": "x"}), ("tiny-agla", {"guard_mask": "x"}), ("tiny", {"agla_alpha": 1}),
        ("tiny", {"kv_transfer_params": "x"}), ("tiny", {"anything": 1}), ("tiny", {"": 1}), ("tiny", [1]),
        ("tiny", "x"),
    ],
)  # fmt: skip
def test_arguments_that_only_the_front_may_author_and_wrong_knobs_are_refused(model: str, xargs: Any) -> None:
    refused = refusal(model=model, vllm_xargs=xargs)
    assert refused.status == 400
    assert "vllm_xargs" in refused.message or "beta" in refused.message or "alpha" in refused.message


@pytest.mark.parametrize("model", ["tiny", "tiny-agla"])
@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_field_is_refused_for_every_name_with_the_reason(model: str, name: str) -> None:
    refused = refusal(model=model, **{name: {"guard_mask": "x"}})
    assert (refused.status, CLOSED[name] in refused.message) == (400, True)


@pytest.mark.parametrize("value", [None, False])
def test_a_closed_field_that_says_nothing_is_left_out(value: Any) -> None:
    assert not set(CLOSED) & set(ask(use_beam_search=value, mm_processor_kwargs=None).body)


@pytest.mark.parametrize(
    "name", ["prompt", "guard", "mm_payload", "extra_body", "Messages", "x" * 100_000, "mm_processor_kwarg"]
)
def test_a_field_that_nobody_looked_at_is_refused(name: str) -> None:
    refused = refusal(**{name: 1})
    assert refused.status == 400
    assert len(refused.message) < 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.1), ("presence_penalty", -1), ("frequency_penalty", 0.1), 
        ("truncate_prompt_tokens", 5), ("truncation_side", "left"), ("chat_template_kwargs", {"x": 1}),
    ],
)  # fmt: skip
def test_what_would_mean_two_things_with_a_guard_is_refused_for_guarded_names_alone(name: str, value: Any) -> None:
    assert name in NEUTRAL
    assert refusal(**{name: value}).status == 400
    assert ask("tiny", **{name: value}).body[name] == value
    for neutral in NEUTRAL[name][0]:
        assert ask(**{name: neutral}).guard is not None


def test_openai_s_and_vllm_s_sampling_fields_are_passed_on() -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 3, "seed": 7, "stop": ["."], "logprobs": True,
        "top_logprobs": 3, "max_tokens": 5, "max_completion_tokens": 6, "stream": True, "logit_bias": {"5": -3.0},
        "stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}, "cache_salt": "x",
    }  # fmt: skip
    assert {name: value for name, value in ask(**fields).body.items() if name in fields} == fields


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"x", b"[]", b"1", b"null", b'"x"', b'{"a":NaN}', b'{"a":Infinity}', b"[" * 100_000, b'{"a":' * 100_000,
        b"\xff\xfe\xfd", b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"a":1' + b"0" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    assert refusal(raw).status == 400


def test_the_matching_text_is_the_last_user_turn_s() -> None:
    chat = [
        {"role": "system", "content": "be brief"}, turn("what is this?", IMAGE),
        {"role": "assistant", "content": "a cat"},
        turn("<image>\nis there a dog? Answer the question using a single word or phrase."),
        {"role": "assistant", "content": "no"}, {"role": "user", "content": [{"type": "text", "text": "and"},
        {"type": "text", "text": "a bird?"}]}, {"role": "assistant", "content": "I"},
    ]  # fmt: skip
    assert ask(messages=chat).question == "and\na bird?"
    assert ask(messages=chat[:4]).question == "is there a dog?"
    assert ask(messages=chat[:3]).question == "what is this?"


@pytest.mark.parametrize("guard", ["agla", "vcd", "vote"])
def test_a_text_alone_under_a_guarded_name_has_nothing_to_guard_and_says_so(guard: str) -> None:
    request = ask(f"tiny-{guard}", messages=[{"role": "user", "content": "hello"}])
    assert request.guard is None
    assert guard in request.unguarded


def test_apc_guards_a_text_alone_too() -> None:
    assert knobs(ask("tiny-apc", messages=[{"role": "user", "content": "hello"}])) == {"beta": 0.5}


@pytest.mark.parametrize("guard", [None, "agla", "vote"])
def test_more_pictures_than_the_server_takes_are_refused(guard: str | None) -> None:
    model = "tiny" if guard is None else f"tiny-{guard}"
    two = [turn("what is this?", IMAGE), {"role": "assistant", "content": "a cat"}, turn("and this?", IMAGE)]
    assert refusal(model=model, messages=two).status == 400
    assert len(ask(model, messages=two, most_pictures=2).chat.pictures) == 2


@pytest.mark.parametrize("guard", ["agla", "vote"])
def test_a_picture_without_a_question_is_refused(guard: str) -> None:
    for message in ({"role": "user", "content": turn("", IMAGE)["content"][:1]}, turn("  <image>\n ", IMAGE)):
        assert "question" in refusal(model=f"tiny-{guard}", messages=[message]).message


@pytest.mark.parametrize(
    "message",
    [
        1, {}, {"role": "user", "content": 3}, {"role": "root", "content": "x"}, {"role": ["user"], "content": "x"},
        {"role": "user", "content": "x", "uuid": "y"}, {"role": "user", "content": [1]},
        {"role": "user", "content": [{"text": "x"}]}, {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "uuid": "y"}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "image_url": IMAGE}]},
        {"role": "user", "content": [{"image_url": {"url": IMAGE}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}, "uuid": "y"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE, "uuid": "y"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": None, "uuid": "y"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": IMAGE}]},
        {"role": "user", "content": [{"type": "image_embeds", "image_embeds": "x"}]},
        {"role": "user", "content": [{"type": "image_pil", "image_pil": "x"}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "http://a/b"}}]},
        {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "http://a/b"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
        {"role": "assistant", "content": None, "audio": {"id": "x"}}, {"role": "assistant", "tool_calls": "x"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", ["tiny", "tiny-agla"])
def test_a_message_that_is_not_understood_is_refused_under_every_name(model: str, message: Any) -> None:
    assert refusal(model=model, messages=[*CHAT, message]).status == 400


@pytest.mark.parametrize("messages", [None, [], {}, "x", 3])
def test_messages_are_needed(messages: Any) -> None:
    assert refusal(messages=messages).status == 400


def test_an_image_url_as_a_text_and_a_detail_are_taken_and_rebuilt() -> None:
    part = {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}
    for content in (part, {"type": "image_url", "image_url": IMAGE}):
        chat = [{"role": "user", "content": [content, {"type": "text", "text": "a dog?"}]}]
        sent = ask(messages=chat).body["messages"][0]["content"][0]
        assert sent == {"type": "image_url", "image_url": {"url": IMAGE}}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "video_url", "image_embeds"]) | _JSON},
    optional={"text": _JSON, "image_url": st.fixed_dictionaries({"url": st.just(IMAGE)}) | _JSON, "uuid": _JSON},
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]) | _JSON},
    optional={"content": st.text(max_size=9) | st.lists(_PART, max_size=3) | _JSON, "name": _JSON, "uuid": _JSON},
)


@given(
    st.sampled_from(NAMES.all), st.lists(_MESSAGE, max_size=3) | _JSON,
    st.dictionaries(st.sampled_from(["vllm_xargs", *CLOSED, *NEUTRAL, "stream", "x"]), _JSON, max_size=3),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_request_is_refused_or_holds_nothing_that_could_speak_for_the_guard(
    model: str, messages: Any, fields: dict[str, Any]
) -> None:
    try:
        request = ask(model, messages, most_pictures=9, **fields)
    except Refused:
        return
    assert not {"vllm_xargs", "x", *CLOSED} & set(request.body)
    text = json.dumps(request.body["messages"])
    assert "uuid" not in {key for message in request.body["messages"] for key in message}
    assert text.count('"image_url": {"url"') == len(request.chat.pictures)
    guard = model.partition("-")[2]
    assert (request.guard is None) == (not guard or bool(request.unguarded))
