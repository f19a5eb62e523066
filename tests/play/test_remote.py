"""A running server instead of a model here: its methods, its proofs, what it can't show."""

import contextlib
import io
import socket

import pytest
from openai_endpoint import OpenAIEndpoint, Reply, load

from lvlm_guard.embedded.text import CAPTION_PROMPT, question
from lvlm_guard.endpoint import KEY
from lvlm_guard.errors import KnobError, ServerError, UnprovedError
from lvlm_guard.play import asking, pictures
from lvlm_guard.play.backend import GREEDY, Asked
from lvlm_guard.play.remote import Remote
from lvlm_guard.pretrained import ask, spoken


@pytest.fixture(scope="module")
def server():
    with OpenAIEndpoint(load(), key="secret") as served:
        yield served


@pytest.fixture
def remote(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setattr("lvlm_guard.play.remote.STEP", 0.0)
    return Remote(server.url.removesuffix("/v1"))


@pytest.fixture(scope="module")
def sent():
    return pictures.sent(pictures.examples(True)[3])


def test_it_offers_what_the_server_has_and_its_matcher_judges_here(remote):
    assert list(remote.methods) == [GREEDY, "agla", "vote"]
    assert set(remote.methods["vote"].knobs) == {"lam", "beta"}
    assert remote.judge is not None
    assert "embedded" in remote.title


def test_its_answers_stream_and_are_the_servers(remote, server, sent):
    picture = pictures.picture_of(sent)
    inputs = ask(server.processor, [[picture]], [CAPTION_PROMPT])
    tokens = server.model.generate(**inputs, max_new_tokens=64, do_sample=False, guard=False)
    want = spoken(server.processor, tokens[0, inputs["input_ids"].shape[1] :]).strip()
    looks = [said.text for said in remote.answers(Asked(picture, CAPTION_PROMPT))]
    assert looks[-1] == want
    assert len(looks) > 5
    assert all(want.startswith(look) for look in looks)


def test_its_knobs_are_sent_and_proved(remote, server, sent):
    server.seen.clear()
    *_, said = remote.answers(Asked(pictures.picture_of(sent), CAPTION_PROMPT, "agla", {"alpha": 1.5}))
    assert server.seen[-1].body["vllm_xargs"] == {"agla_alpha": 1.5}
    assert said.text.startswith("the image shows")


def test_an_answer_without_proof_of_its_guard_is_not_taken(remote, server, sent):
    def stripped(_, reply: Reply) -> Reply:
        reply.headers, reply.body = {}, reply.body.replace('"lvlm_guard"', '"other"')
        return reply

    with server.faulty(stripped), pytest.raises(UnprovedError, match="may be a plain one"):
        list(remote.answers(Asked(pictures.picture_of(sent), question("dog"), "agla")))


def test_the_page_shows_both_and_says_what_a_server_does_not_tell(remote, sent):
    frames = list(asking.asking(remote, sent, question("ball"), [GREEDY, "agla"], {}, 8))
    assert "tells no overruled tokens" in frames[-1].said
    assert all("Asked about" in card for card in frames[-1].cards)
    assert "overruled" not in "".join(frames[-1].cards)


def test_the_copied_script_asks_the_server(remote, server, sent):
    begun = pictures.examples(True)
    *_, last = asking.asking(remote, sent, CAPTION_PROMPT, [GREEDY, "vote"], {"vote": {"lam": 2.0}}, 32, begun)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(last.code, "copied", "exec"), {})
    plain, vote = printed.getvalue().splitlines()
    assert plain.startswith("embedded: the image shows")
    assert "'method': 'vote'" in vote
    assert "'lam': 2.0" in vote
    assert "secret" not in last.code


def test_a_server_that_is_not_there_or_serves_no_guard_is_said(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="Is the server running"):
            Remote(f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(ServerError, match=KEY):
        Remote(server.url)
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(KnobError, match="no password"):
        Remote("http://me:secret@127.0.0.1:1")
    with pytest.raises(KnobError, match="no address"):
        Remote("127.0.0.1:8000")
    server.names, names = {"embedded": ""}, server.names
    try:
        with pytest.raises(ServerError, match="serves no guarded model"):
            Remote(server.url)
        server.names = dict.fromkeys(("embedded", "embedded-verify", "embedded-best"), "")
        with pytest.raises(ServerError, match=r"checks answers .embedded-verify, embedded-best.*without --upstream"):
            Remote(server.url)
    finally:
        server.names = names
