"""The load generator against the real front, with an engine behind it whose pace is known."""

from __future__ import annotations

import asyncio
import re

import pytest
from front_server import picture, serving
from measured_server import Engine, measured
from PIL import Image

from lvlm_guard.bench.workloads import picture_workloads
from lvlm_guard.serve.errors import Refused, ServeError, Unproved
from lvlm_guard.serve.measure.asking import Arm, Asking, Cell
from lvlm_guard.serve.measure.bench import ServerBench, arms_of, burst, is_twin, rows
from lvlm_guard.serve.measure.endpoint import Chat, Endpoint
from lvlm_guard.serve.measure.records import Record, Records

WORKLOADS = picture_workloads([Image.new("RGB", (24, 16), colour) for colour in ("red", "teal")], (1,), 8)
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
            with serving(Strips(Relay(), header)) as relay, pytest.raises(Unproved, match=where):
                asked(relay, AGLA, stream=stream)
        with serving(Relay()) as relay:
            assert asked(relay, AGLA, stream=stream).proof.guard == "agla"


def test_a_plain_server_that_guards_is_found_out():
    with measured(Engine()) as url, pytest.raises(Unproved, match="no ordinary vLLM"):
        asked(url, Chat("tiny", None, "what?", picture(1), 5), guarded=False)
    with serving(Engine().app()) as url:
        assert asked(url, Chat("tiny", None, "what?", picture(1), 5), guarded=False).proof is None
        with pytest.raises(Unproved, match="without a word"):
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
    assert arms_of(listed, "other", ["vote"]) == [Arm("other", None), Arm("other-vote", "vote")]
    assert [arm.name for arm in arms_of(listed)] == ["tiny", "tiny-agla", "tiny-vote"]
    assert is_twin(listed)
    assert not is_twin({"a": None, "a-vote": "vote"})
    for wrong in (("none", ()), ("tiny", ("vcd",)), ("tiny-agla", ())):
        with pytest.raises(ServeError):
            arms_of(listed, *wrong)
    with serving(Engine().app()) as url:
        assert asyncio.run(names(url, False)) == {"tiny": None}
        with pytest.raises(ServeError, match="nothing of guards"):
            asyncio.run(names(url, True))


def test_a_burst_keeps_as_many_in_flight_as_asked_and_no_more():
    engine = Engine(pace=0.02)
    with measured(engine) as url:

        async def run():
            async with Endpoint(url) as endpoint:
                chats = [Chat("tiny", None, f"{i}?", picture(i), 5, full=True) for i in range(12)]
                return await burst(endpoint, chats, 4)

        said, seconds = asyncio.run(run())
    assert engine.most == 4
    assert len(said) == 12
    assert 0.3 <= seconds < 1.5


def run(url, tmp_path, blocks=2, at_once=(1, 3), guards=(), **more):
    records = Records(tmp_path / "run.jsonl", {"is": "a test"})

    async def measure():
        async with Endpoint(url) as endpoint:
            arms = arms_of(await endpoint.names(), guards=guards)
            cells = [Cell(workload, load) for workload in WORKLOADS for load in at_once]
            await ServerBench({"guarded": endpoint}, arms, cells, blocks=blocks, **more).run(records)

    return records, measure


def test_a_run_measures_every_arm_and_finds_the_slower_one(tmp_path):
    engine = Engine(guarded_pace=0.03)  # far more than a busy machine adds
    with measured(engine, matcher_slow=0.03) as url:
        records, measure = run(url, tmp_path, at_once=(6,))
        asyncio.run(measure())
    assert len(records.all) == 2 * 2 * 3
    pictures = [body["messages"][0]["content"][0]["image_url"]["url"] for body in engine.bodies]
    assert len(set(pictures)) == len(pictures)  # none was seen twice
    assert all(body["temperature"] == 0 for body in engine.bodies)
    found = {
        (row["task"], row["concurrency"], row["method"], row["metric"]): row for row in rows(records.all, twin=True)
    }
    for task, load in (("caption", 6), ("question", 6)):
        for guard in ("agla", "vote"):
            ratio = found[task, load, guard, "time_ratio"]
            assert ratio["value"] > 1.2
            assert ratio["low"] <= ratio["value"] <= ratio["high"]
            assert ratio["verdict"] in ("under", "over", "unclear")
            assert found[task, load, guard, "throughput_ratio"]["value"] < 0.85
            assert found[task, load, guard, "matcher_wait_s"]["value"] > 0.03
            assert found[task, load, guard, "first_token_ratio"]["value"] > 1.2
        assert (task, load, "greedy", "time_ratio") not in found
    assert found["caption", 6, "greedy", "tokens_per_s"]["n"] == 2 * 12


def test_a_run_that_was_stopped_goes_on_from_its_file(tmp_path):
    engine = Engine(refuse_after=150)
    with measured(engine) as url:
        records, measure = run(url, tmp_path, guards=("agla",), at_once=(6, 7))
        with pytest.raises(Refused, match="worn out"):
            asyncio.run(measure())
        done = len(records.all)
        assert 0 < done < 16
        engine.refuse_after = None
        records, measure = run(url, tmp_path, guards=("agla",), at_once=(6, 7))
        assert len(records.all) == done
        asyncio.run(measure())
    assert len(records.all) == 16
    assert len({(r.task, r.at_once, r.block, r.guard) for r in records.all}) == 16
    with pytest.raises(ServeError, match="other settings"):
        Records(tmp_path / "run.jsonl", {"is": "another"})
    (tmp_path / "run.jsonl").write_text('{"is": "a test"}\n{"task": "caption"}\n')
    with pytest.raises(ServeError, match="Line 2"):
        Records(tmp_path / "run.jsonl", {"is": "a test"})


def test_arms_that_would_do_different_work_are_refused(tmp_path):
    with measured(Engine(short=True)) as url:
        _, measure = run(url, tmp_path)
        with pytest.raises(ServeError, match="different work"):
            asyncio.run(measure())


def test_warm_requests_repeat_their_pictures_and_cold_ones_never():
    cell, arm = Cell(WORKLOADS[1], 2), Arm("tiny", None)
    cold, warm = Asking(False), Asking(True)
    assert {c.picture for c in cold.chats(cell, 0, arm)}.isdisjoint(c.picture for c in cold.chats(cell, 0, arm))
    assert warm.chats(cell, 0, arm) == warm.chats(cell, 5, arm)
    assert [c.prompt for c in cold.chats(cell, 1, arm)] != [c.prompt for c in cold.chats(cell, 0, arm)]


def record(block, guard, seconds, *, first=0.1, at_once=1, server="guarded", matched=0.0, tokens=100):
    return Record("caption", at_once, block, server, guard, 4, seconds, tokens, (first,) * 4, matched)


def test_ratios_are_of_blocks_and_their_bounds_of_the_cost_model():
    made = []
    for block in range(5):
        slow = 1 + block  # a machine that slows down hits all arms alike
        made += [record(block, None, 1.0 * slow), record(block, "agla", 1.5 * slow, matched=0.4, first=0.2)]
        made += [record(block, None, 0.5 * slow, server="plain")]
    made.append(record(5, None, 99.0))  # a block that was not finished
    found = {(r["method"], r["server"], r.get("against"), r["metric"]): r for r in rows(made, twin=True)}
    same = found["agla", "guarded", "guarded", "time_ratio"]
    assert (same["value"], same["low"], same["high"]) == pytest.approx((1.5, 1.5, 1.5))
    # plain takes 3 / 4 s a request in the middle; the second view .1 s, the mask .4 / 4 s
    assert same["bound"] == pytest.approx(1 + (0.1 + 0.1) / 0.75)
    assert same["verdict"] == "over"
    other = found["agla", "guarded", "plain", "time_ratio"]
    assert other["value"] == pytest.approx(3)
    assert other["bound"] == pytest.approx(2 + 0.1 / 0.375)
    plain = found["greedy", "guarded", "plain", "time_ratio"]
    assert (plain["value"], plain["bound"], plain["verdict"]) == (pytest.approx(2), 2, "under")
    assert found["agla", "guarded", "guarded", "first_token_ratio"]["value"] == pytest.approx(2)
    assert found["agla", "guarded", None, "tokens_per_s"]["value"] == pytest.approx(100 / 4.5)
    assert found["agla", "guarded", None, "first_token_p95_s"]["value"] == pytest.approx(0.2)
    assert {r["blocks"] for r in found.values()} == {5}


def test_vote_without_a_twin_may_cost_a_twentieth_and_its_scores():
    made = [record(b, g, s, matched=m) for b in range(3) for g, s, m in ((None, 1.0, 0.0), ("vote", 1.2, 0.04))]
    (ratio,) = [row for row in rows(made, twin=False) if row["metric"] == "time_ratio"]
    assert ratio["bound"] == pytest.approx(1 / 0.95 + 0.01 / 0.25)
    assert ratio["verdict"] == "over"


def test_a_single_block_gives_figures_without_intervals_and_none_gives_none():
    found = rows([record(0, None, 1.0), record(0, "agla", 2.0)], twin=True)
    assert {(row["low"], row["high"]) for row in found} == {(None, None)}
    assert rows([record(0, None, 1.0), record(1, "agla", 2.0)], twin=True) == []
    assert rows([], twin=True) == []
