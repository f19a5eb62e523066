"""The soak's client against the real front, with an engine behind it whose pace is known."""

from __future__ import annotations

import asyncio
import re

import pytest
from front_server import picture, serving
from measured_server import Engine, measured
from soaking.asking import arms_of
from soaking.endpoint import Chat, Endpoint

from lvlm_guard.errors import UnprovedError
from lvlm_guard.serve.errors import Refused, ServeError

AGLA = Chat("tiny-agla", "agla", "what is it?", picture(1), 5, {"alpha": 1.5})


def asked(url, chat, *, guarded=True, **how):
    async def ask():
        async with Endpoint(url, guarded=guarded) as endpoint:
            return await endpoint.ask(chat, **how)

    return asyncio.run(ask())


def test_an_answer_has_its_text_tokens_times_and_proof_streamed_or_whole():
    engine = Engine(pace=0.02)
    with measured(engine) as url:
        streamed, whole = (asked(url, AGLA, stream=stream) for stream in (True, False))
    for said in (streamed, whole):
        assert (said.text, said.tokens, said.finish) == ("agla0 agla1 agla2", 3, "stop")
        assert (said.proof.guard, said.proof.knobs) == ("agla", {"alpha": 1.5, "beta": 0.5})
        assert said.proof.version == "stand-in@1"
    assert streamed.first >= 0.02
    assert streamed.seconds - streamed.first >= 0.035  # two tokens more
    assert whole.first == whole.seconds >= 0.06
    assert engine.bodies[0]["vllm_xargs"]["guard_alpha"] == 1.5


def test_a_client_that_leaves_has_what_had_come_and_frees_the_server():
    engine = Engine(pace=0.05)
    with measured(engine) as url:
        said = asked(url, Chat("tiny", None, "what?", picture(1), 90, full=True), leave=0.28)
        assert said.finish == "left"
        assert re.fullmatch(r"plain0( plain\d)+", said.text)
        assert asked(url, AGLA, leave=0.001).proof is None  # nothing had come
        assert asked(url, AGLA).text
        assert engine.running == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_without_its_proof_is_an_error_wherever_it_is_lost(stream):
    class Strips:
        def __init__(self, app, header):
            self.app, self.header = app, header

        async def __call__(self, scope, receive, send):
            async def stripped(message):
                if message["type"] == "http.response.start" and self.header:
                    kept = [(name, value) for name, value in message["headers"] if name != b"x-agla"]
                    message = {**message, "headers": kept}
                elif message["type"] == "http.response.body" and not self.header:
                    message = {**message, "body": message["body"].replace(b'"lvlm_guard"', b'"lost_guards"')}
                await send(message)

            await self.app(scope, receive, stripped)

    engine = Engine()
    with measured(engine) as url:
        import httpx

        class Relay:
            """A proxy before the server."""

            async def __call__(self, scope, receive, send):
                body = (await receive())["body"] if scope["type"] == "http" else b""
                async with httpx.AsyncClient(trust_env=False) as client:
                    got = await client.request(scope["method"], url + scope["path"], content=body)
                headers = [(k.lower(), v) for k, v in got.headers.raw if k.lower() != b"content-length"]
                await send({"type": "http.response.start", "status": got.status_code, "headers": headers})
                await send({"type": "http.response.body", "body": got.content})

        for header, where in ((True, "header"), (False, "body")):
            with serving(Strips(Relay(), header)) as relay, pytest.raises(UnprovedError, match=where):
                asked(relay, AGLA, stream=stream)
        with serving(Relay()) as relay:
            assert asked(relay, AGLA, stream=stream).proof.guard == "agla"


def test_a_plain_server_that_guards_is_found_out():
    with measured(Engine()) as url, pytest.raises(UnprovedError, match="no ordinary vLLM"):
        asked(url, Chat("tiny", None, "what?", picture(1), 5), guarded=False)
    with serving(Engine().app()) as url:
        assert asked(url, Chat("tiny", None, "what?", picture(1), 5), guarded=False).proof is None
        with pytest.raises(UnprovedError, match="without a word"):
            asked(url, Chat("tiny-agla", "agla", "what?", picture(1), 5))


def test_what_a_server_refuses_comes_with_its_status_and_reason():
    with measured(Engine()) as url:
        with pytest.raises(Refused, match="no model 'tiny-vcd'") as refused:
            asked(url, Chat("tiny-vcd", "vcd", "what?", picture(1), 5))
        assert refused.value.status == 404
    with pytest.raises(ServeError, match="can't be reached"):
        asked(url, AGLA)


def test_names_say_their_guards_and_other_servers_have_none():
    async def names(url, guarded):
        async with Endpoint(url, guarded=guarded) as endpoint:
            return await endpoint.names()

    with measured(Engine(names=("tiny", "other"))) as url:
        listed = asyncio.run(names(url + "/v1/", True))
    assert listed == {
        "tiny": None, "tiny-agla": "agla", "tiny-vote": "vote",
        "other": None, "other-agla": "agla", "other-vote": "vote",
    }  # fmt: skip
    assert [arm.name for arm in arms_of(listed)] == ["tiny", "tiny-agla", "tiny-vote"]
    with serving(Engine().app()) as url:
        assert asyncio.run(names(url, False)) == {"tiny": None}
        with pytest.raises(ServeError, match="nothing of guards"):
            asyncio.run(names(url, True))
