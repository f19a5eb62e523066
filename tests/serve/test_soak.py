"""A soak finds what is wrong, and attacks beside it what is open; the real front, with an engine that is known."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from front_server import serving
from measured_server import Engine, measured
from PIL import Image
from soaking import attacks
from soaking.asking import Arm
from soaking.attacks import Attacks
from soaking.endpoint import Endpoint
from soaking.kills import SHARES, plan
from soaking.pool import KNOBS, pool
from soaking.processes import Processes, Sample, slopes
from soaking.reference import Expected, Reference
from soaking.soak import Soak

from lvlm_guard.bench.workloads import picture_workloads, world_workloads
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.serve.errors import ServeError

WORKLOADS = picture_workloads([Image.new("RGB", (24, 16), colour) for colour in ("red", "teal")], (1,), 8)
ARMS = [Arm("tiny", None), Arm("tiny-agla", "agla"), Arm("tiny-vote", "vote")]


def told(image, chat):
    """What `Engine` says, cut at the length that was asked for."""
    ids = tuple(range(min(3, chat.tokens)))
    text = " ".join(f"{chat.guard or 'plain'}{i}" for i in ids)
    return Expected(text, ids, "stop" if chat.tokens > 3 else "length")


def soaked(engine, seconds=1.5, answer=told, asked=0, **more):
    """Return what a soak sees; it goes on until the engine was asked so often, however slow the machine is."""
    with measured(engine) as url:

        async def run():
            async with Endpoint(url) as endpoint:
                soak = Soak(endpoint, pool(WORKLOADS, ARMS, 24, answer), at_once=4, **more)
                await soak.run(seconds)
                while len(engine.bodies) < asked:
                    await soak.run(seconds)
                return soak.found

        return asyncio.run(run())


@pytest.mark.slow
def test_a_sound_server_is_found_sound_with_every_name_asked_every_way():
    engine = Engine(pace=0.01)
    found = soaked(engine, processes=Processes(os.getpid()), asked=100)
    assert found.sound, found.said
    assert set(found.answers) == {"plain", "agla", "vote"}
    assert min(found.answers.values()) > 3
    assert not found.errors
    asked = [body for body in engine.bodies if body["messages"]]
    assert {body["stream"] for body in asked} == {True, False}
    assert {body["vllm_xargs"].get("guard_alpha") for body in asked if "vllm_xargs" in body} >= {1.0, 2.0, 4.0}
    rows = {(row["metric"], row.get("method") or row.get("when") or row.get("process")): row for row in found.rows()}
    assert rows["answers", "vote"]["value"] == found.answers["vote"]
    assert rows["kv_cache_usage", "after"]["value"] == 0


@pytest.mark.slow
def test_clients_that_leave_are_counted_and_what_they_saw_is_compared():
    found = soaked(Engine(pace=0.15), seconds=4)
    assert found.sound, found.said
    assert found.left


@pytest.mark.slow
@pytest.mark.parametrize("answer", [told, None])
def test_answers_that_change_are_wrong_with_and_without_a_reference(answer):
    class Fickle(Engine):
        async def _words(self, body):
            self.other = "otherwise" if len(self.bodies) > 60 else ""
            async for word in super()._words(body):
                yield word

    found = soaked(Fickle(), answer=answer, asked=100)
    assert found.wrong
    assert not found.sound
    assert "otherwise" in found.said[0]


@pytest.mark.slow
def test_a_cache_that_stays_in_use_is_not_sound(monkeypatch):
    monkeypatch.setattr("soaking.soak.SETTLE", 0.3)
    engine = Engine()
    engine.cache.set(0.25)
    found = soaked(engine, seconds=0.2)
    assert not found.sound
    assert found.rest["after"]["kv_cache_usage"] == 0.25


@pytest.mark.slow
def test_errors_are_counted_by_status_and_are_no_wrong_answers():
    found = soaked(Engine(refuse_after=10), seconds=1, asked=20)
    assert found.sound
    assert set(found.errors) == {500}
    assert found.answers.total() + found.left >= 10 - 4


def test_growth_is_a_slope_after_the_time_that_is_left_out():
    samples = [Sample(60.0 * i, {"maskd": 100 + (50 if i == 0 else 2 * i), "serve": 5.0}) for i in range(10)]
    found = slopes(samples, skip=120)
    assert found == pytest.approx({"maskd": 2.0, "serve": 0.0, "all": 2.0})
    assert slopes(samples[:2], 0) == {}
    assert slopes([], 120) == {}


def test_a_process_and_its_children_are_watched_by_what_they_do():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input() # serve.maskd'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        watched = Processes(parent.pid)
        # A process that has only just begun holds next to nothing, under its own name already.
        deadline = time.monotonic() + 60
        while "maskd" not in (mib := watched.sample().mib) or min(mib.values()) < 1:
            assert time.monotonic() < deadline, mib
        assert set(mib) == {"serve", "maskd"}
        parent.communicate(b"\n")
    with pytest.raises(ServeError, match="no process"):
        Processes(parent.pid)


def test_the_pool_holds_every_name_and_knob_with_the_answers_of_the_transformers_engine():
    arms = [Arm("embedded", None), Arm("embedded-agla", "agla"), Arm("embedded-vote", "vote")]
    cases = pool(world_workloads(4, (1,)), arms, 36, Reference(CLASSES).answer)
    assert len(cases) == 36
    chats = [case.chat for case in cases]
    assert {chat.guard for chat in chats} == {None, "agla", "vote"}
    for guard in ("agla", "vote"):
        assert [dict(knobs) for knobs in KNOBS[guard] if knobs not in [chat.knobs for chat in chats]] == []
    captions = [case for case in cases if case.chat.tokens == 40]
    assert all(case.expected.text.startswith("the image shows") for case in captions)
    assert {case.expected.text for case in cases if case.chat.tokens == 4} == {"yes", "no"}
    assert {case.expected.finish for case in cases if case.chat.tokens == 5} == {"length"}
    file = cases[0].anew(1).picture
    assert file != cases[0].chat.picture
    assert cases[0].anew(2).picture != file


@pytest.fixture
def stand_in(monkeypatch):
    """A process in the matcher's place, which may be stopped."""
    for name, seconds in (("PAUSE", 0.05), ("WELL", 0.3), ("HUNG", 0.1), ("SOCKETS", 8)):
        monkeypatch.setattr(attacks, name, seconds)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.communicate(b"\n")


def attacked(url: str, matcher: psutil.Process) -> Attacks:
    """Return what was seen once each kind of attack was made twice."""
    kinds = {"blanks", "header bomb", "forged", "fields", "trickling sockets", "hung matcher"}
    made = Attacks(url, pool(WORKLOADS, ARMS, 12, told), lambda: matcher)

    async def run() -> None:
        async with made.running():
            while any(made.made[kind] < 2 for kind in kinds):
                await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(), 100))
    return made


@pytest.mark.slow
def test_nothing_gets_past_the_front(stand_in):
    with measured(Engine()) as url:
        assert attacked(url, stand_in).through == []
    assert stand_in.status() != psutil.STATUS_STOPPED


def test_a_server_without_a_front_lets_each_kind_through(stand_in):
    with serving(Engine(("tiny", "tiny-agla", "tiny-vote")).app()) as url:
        through = attacked(url, stand_in).through
    assert {one.split(":")[0].split(" {")[0] for one in through} == {"header bomb", "forged headers", "fields"}


def test_kills_are_the_same_for_a_seed_and_fall_on_every_process():
    assert plan(50, 3) == plan(50, 3) != plan(50, 4)
    assert Counter(role for role, _ in plan(50, 0)) == SHARES
