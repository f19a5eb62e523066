"""What the server refuses, as the official client sees it, and that nothing of it harms whoever asks next."""

from __future__ import annotations

import base64
import re
import socket
from urllib.parse import urlsplit

import httpx
import openai
import pytest

pytest.importorskip("vllm")

from maskd_service import metric
from served import KEY, body, data_url, turn

from lvlm_guard.embedded import world
from lvlm_guard.serve.front.routes import KEYED, OPEN

NAMES = ("embedded", "embedded-agla", "embedded-vote")
TALK = [turn(world.CAPTION_PROMPT, 14)]
QUESTION = {"type": "text", "text": world.question("dog")}


def refusal(server, name, talk=TALK, kind=openai.BadRequestError, **fields):
    """Return the message of a refusal in OpenAI's form."""
    with pytest.raises(kind) as caught:
        server.client.chat.completions.create(**body(name, talk, **fields))
    error = caught.value
    assert error.body.keys() >= {"message", "type", "code"}
    assert error.body["code"] == error.status_code
    guard = name.partition("-")[2]
    said = {n: v for n, v in error.response.headers.items() if n in ("x-agla", "x-vote")}
    assert set(said.values()) <= {"refused"}
    assert not guard or f"x-{guard}" in said
    return error.body["message"]


@pytest.fixture(autouse=True)
def unharmed(server, reference):
    """After every test the guard answers as ever."""
    yield
    assert server.ask("embedded-agla", TALK).tokens == reference.greedy("embedded-agla", TALK).tokens


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "extra",
    [
        {"mm_processor_kwargs": {"guard_mask": "x"}}, {"mm_processor_kwargs": {}}, {"media_io_kwargs": {"image": {}}},
        {"vllm_xargs": {"guard": "agla"}}, {"vllm_xargs": {"guard": "vote", "guard_scores": "x"}},
        {"vllm_xargs": {"guard_alpha": 0}}, {"vllm_xargs": {"guard_mask": "x"}}, {"vllm_xargs": [1]},
        {"vllm_xargs": {"anything": 1}}, {"prompt_logprobs": 1}, {"use_beam_search": True}, {"prompt_embeds": "AA=="},
        {"chat_template": "{{ messages[0].content }}"}, {"kv_transfer_params": {"x": 1}}, {"lvlm_guard": "off"},
        {"watermarking": True}, {"guided_json": {}},
    ],
)  # fmt: skip
def test_the_guard_s_own_arguments_and_ways_around_it_are_refused_under_every_name(server, name, extra):
    field = next(iter(extra))
    assert field in refusal(server, name, extra_body=extra)
    assert field in refusal(server, name, extra_body=extra, stream=True)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("embedded-agla", {"knobs": {"agla_alpha": -1}}, "alpha"),
        ("embedded-agla", {"knobs": {"agla_beta": 1.5}}, "beta"),
        ("embedded-agla", {"knobs": {"agla_gamma": 1}}, "It has: agla_alpha, agla_beta"),
        ("embedded-agla", {"knobs": {"vote_lam": 1}}, "vote_lam"),
        ("embedded-vote", {"knobs": {"vote_beta": 0}}, "beta"),
        ("embedded", {"knobs": {"agla_alpha": 1}}, "name a guarded one"),
        ("embedded-agla", {"presence_penalty": 0.5}, "presence_penalty"),
        ("embedded-vote", {"frequency_penalty": -0.5}, "frequency_penalty"),
        ("embedded-agla", {"extra_body": {"repetition_penalty": 1.2}}, "repetition_penalty"),
        ("embedded-vote", {"temperature": -1}, "temperature"),
        ("embedded-agla", {"n": 0}, "n"),
        ("embedded-agla", {"logprobs": True, "top_logprobs": 500}, "logprobs"),
        ("embedded-vote", {"max_tokens": 100_000}, "max_tokens"),
        ("embedded", {"max_tokens": 0}, "max_tokens"),
        ("embedded-agla", {"top_p": 2}, "top_p"),
        ("embedded-agla", {"extra_body": {"allowed_token_ids": [10**6]}}, "allowed_token_ids"),
        ("embedded-agla", {"logit_bias": {"999999": 1}}, "logit_bias"),
        ("embedded-agla", {"response_format": {"type": "nonsense"}}, "response_format"),
        ("embedded-vote", {"extra_body": {"structured_outputs": {"regex": "("}}}, "regex"),
    ],
)
def test_a_field_that_is_out_of_range_is_told_as_such(server, name, fields, said):
    assert said in refusal(server, name, **fields)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"type": "image_url", "image_url": {"url": data_url(1)}, "uuid": "1"}, QUESTION], "uuid"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, QUESTION], "picture"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, QUESTION], "base64"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, QUESTION], "Files of the server"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, QUESTION], "not fetched"),
        ([{"type": "image_embeds", "image_embeds": "AA=="}, QUESTION], "image_embeds"),
        ([{"type": "video_url", "video_url": {"url": "x"}}, QUESTION], "video_url"),
        ([{"type": "image_url", "image_url": {"url": data_url(1)[:-400]}}, QUESTION], "picture"),
    ],
)
def test_a_picture_that_is_none_or_may_not_be_had_is_refused(server, name, parts, said):
    assert said in refusal(server, name, [{"role": "user", "content": parts}])


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_picture_without_a_question_is_refused_under_a_guarded_name(server, name):
    assert "no text" in refusal(server, name, [turn("", 1)])
    assert "no text" in refusal(server, name, [turn(world.CAPTION_PROMPT, 1), turn("<image>")])


@pytest.mark.parametrize("talk", [[], [{"role": "nobody", "content": "x"}], [{"role": "user", "content": 3}]])
def test_what_is_no_talk_is_refused(server, talk):
    assert "message" in refusal(server, "embedded-agla", talk)


@pytest.mark.parametrize("name", ["embedded-vcd", "embedded-agl", "", "llava", "embedded-agla "])
def test_a_model_that_is_not_served_is_not_found(server, name):
    with pytest.raises(openai.NotFoundError, match="Models here: embedded, embedded-agla, embedded-vote"):
        server.client.chat.completions.create(**body(name, TALK))


@pytest.mark.parametrize("headers", [{}, *({"Authorization": v} for v in (f"Basic {KEY}", KEY, "Bearer", "Bearer x"))])
def test_a_missing_or_wrong_key_is_refused_before_anything_is_read(server, headers):
    for method, path in sorted(KEYED):
        said = httpx.request(method, server.url + path, headers=headers, content=b"no JSON", trust_env=False)
        assert said.status_code == 401
        assert said.json()["error"]["type"] == "authentication_error"
        assert said.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0).models.list()


def test_the_client_lists_plain_and_guarded_names(server):
    cards = server.client.models.list().data
    assert [card.id for card in cards] == list(NAMES) == server.names
    assert [card.lvlm_guard for card in cards] == [{"method": None}, {"method": "agla"}, {"method": "vote"}]


def routes(server):
    """Every way that vLLM's app has, as its log lists them at the start."""
    found = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", server.log.read_text())
    assert len(found) > 25
    return sorted({(path, method) for path, methods in found for method in methods.split(", ")})


def test_every_other_way_that_vllm_has_is_closed(server):
    known = {path for _, path in OPEN | KEYED}
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        closed = 0
        for path, method in routes(server):
            if path in known:
                continue
            for way in (path, path + "/", f"//{path[1:]}", path.replace("/", "/%2e/", 1)):
                filled = re.sub(r"\{[^}]*\}", "1", way)
                sent = {"model": "embedded-agla", "prompt": "x", "input": "x", "messages": TALK}
                said = client.request(method, server.url + filled, json=None if method in ("GET", "HEAD") else sent)
                assert said.status_code in (404, 405), f"{method} {filled}"
                closed += 1
        for path in ("/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/v1/chat/completions/batch"):
            assert client.post(server.url + path, json={"model": "embedded", "prompt": "x"}).status_code == 404
        assert client.put(server.url + "/v1/chat/completions", json={}).status_code == 405
        assert closed > 60
        for method, path in OPEN:
            assert client.request(method, server.url + path).status_code == 200


def test_a_web_socket_is_not_opened(server):
    place = urlsplit(server.url)
    for path in ("/v1/realtime", "/v1/chat/completions"):
        with socket.create_connection((place.hostname, place.port), timeout=20) as line:
            key = base64.b64encode(b"0123456789abcdef").decode()
            line.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Authorization: Bearer {KEY}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert line.recv(64).split()[1] in (b"403", b"404", b"405")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "1e308"])
@pytest.mark.parametrize(
    "field", ['"temperature": %s', '"top_p": %s', '"seed": %s', '"logit_bias": {"5": %s}', '"priority": %s']
)
def test_numbers_beyond_all_numbers_are_an_error_of_the_client_s(server, field, number):
    talk = '"messages": [{"role": "user", "content": "is there a dog in the image ?"}]'
    raw = "{" + ", ".join(['"model": "embedded", "max_tokens": 2', talk, field % number]) + "}"
    said = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=raw,
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        trust_env=False,
    )
    assert said.status_code in (200, 400), said.text


def test_answers_and_refusals_are_counted_beside_vllm_s_own_metrics(server):
    def counted():
        return [metric(server.url, name) for name in ("lvlm_guard_refusals_total", "lvlm_guard_requests_total")]

    before = counted()
    refusal(server, "embedded-agla", n=1, extra_body={"use_beam_search": True})
    server.ask("embedded-agla", TALK)
    assert counted() == [before[0] + 1, before[1] + 1]
    assert metric(server.url, "vllm:generation_tokens_total") > 0
