"""Guarded names stay closed until their file is there, in every process; only the canary's token asks before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from front_server import EngineStandIn, MatcherStandIn, data_url, expected_mask, picture, serving, turn
from prometheus_client import CollectorRegistry

from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.canary import HEADER, RANK, Gate
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.wire import unpack_mask, unpack_scores

TOKEN = "a-random-token"
IMAGE = picture()
CHAT = [turn("is there a dog?", data_url(IMAGE))]


class Site:
    """Two fronts of one server, as two API processes have them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.opened = folder / "open"
        self.engine, self.matcher = EngineStandIn(), MatcherStandIn()
        self.settings = FrontSettings(
            ("tiny",),
            ("agla", "vote"),
            upstream=stack.enter_context(serving(self.engine.app())),
            maskd_url=stack.enter_context(serving(self.matcher.app())),
            opened=str(self.opened),
            token=TOKEN,
        )
        self.clients = []
        for _ in range(2):
            front = Front(
                FrontSettings.from_environment({"LVLM_GUARD_FRONT": self.settings.to_json()}),
                key="",
                metrics=FrontMetrics(CollectorRegistry()),
            )
            url = stack.enter_context(serving(front))
            self.clients.append(stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=20)))

    def post(self, model: str, canary: str | None = None, process: int = 0) -> httpx.Response:
        headers = {} if canary is None else {HEADER: canary}
        body = {"model": model, "messages": CHAT}
        return self.clients[process].post("/v1/chat/completions", json=body, headers=headers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, tmp_path)


@pytest.mark.parametrize("model", ["tiny-agla", "tiny-vote"])
def test_a_guarded_name_answers_503_until_it_is_opened_in_every_process(site: Site, model: str) -> None:
    for process in (0, 1):
        answer = site.post(model, process=process)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert f"{model} is not yet open" in answer.json()["error"]["message"]
    assert (site.engine.bodies, site.matcher.asked) == ([], [])
    site.opened.touch()
    for process in (0, 1):
        assert site.post(model, process=process).status_code == 200


def test_ready_says_whether_guarded_names_are_open(site: Site) -> None:
    assert site.clients[0].get("/ready").status_code == 503
    assert site.clients[0].get("/health").status_code == 200
    site.opened.touch()
    for client in site.clients:
        assert client.get("/ready").status_code == 200


def test_the_plain_name_answers_before_guarded_ones_are_open(site: Site) -> None:
    answer = site.post("tiny")
    assert answer.status_code == 200
    assert answer.headers["x-agla"] == "off"


@pytest.mark.parametrize("wrong", ["", "1.0", "A-random-token 1.0", "a-random-toke 1.0", "a-random-token-x 1"])
def test_a_wrong_token_asks_nothing_before_the_names_are_open(site: Site, wrong: str) -> None:
    assert site.post("tiny-agla", wrong).status_code == 503
    assert site.engine.bodies == []


@pytest.mark.parametrize(("share", "kept"), [("1.0", True), ("0.0", False)])
def test_the_canary_chooses_a_mask_without_asking_the_matcher(site: Site, share: str, kept: bool) -> None:
    answer = site.post("tiny-agla", f"{TOKEN} {share}")
    assert answer.headers["x-agla"] == "on; alpha=2; beta=0.5; mask=canary"
    (sent,) = site.engine.bodies
    assert unpack_mask(sent["mm_processor_kwargs"]["guard_mask"]).all() == kept
    assert unpack_mask(sent["mm_processor_kwargs"]["guard_mask"]).any() == kept
    assert site.matcher.asked == []


def test_the_canary_chooses_the_score_of_the_question(site: Site) -> None:
    assert site.post("tiny-vote", f"{TOKEN} 0.999").status_code == 200
    (sent,) = site.engine.bodies
    assert unpack_scores(sent["vllm_xargs"]["guard_scores"]) == {"is there a dog?": 0.999}
    assert site.matcher.asked == []


def test_the_token_alone_asks_the_matcher_itself(site: Site) -> None:
    assert site.post("tiny-agla", TOKEN).status_code == 200
    assert site.matcher.asked == ["is there a dog?"]


def test_the_token_chooses_nothing_once_the_names_are_open(site: Site) -> None:
    site.opened.touch()
    assert site.post("tiny-agla", f"{TOKEN} 1.0").headers["x-agla"].endswith("mask=stand-in@1")
    (sent,) = site.engine.bodies
    np.testing.assert_array_equal(
        unpack_mask(sent["mm_processor_kwargs"]["guard_mask"]), expected_mask(IMAGE, "is there a dog?")
    )


def test_without_a_token_in_the_settings_no_header_opens_anything(tmp_path: Path) -> None:
    engine = EngineStandIn()
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(engine.app()))
        settings = FrontSettings(("tiny",), ("apc",), upstream=upstream, opened=str(tmp_path / "open"))
        url = stack.enter_context(serving(Front(settings, key="", metrics=FrontMetrics(CollectorRegistry()))))
        for given in ("", "x", "1.0"):
            body = {"model": "tiny-apc", "messages": CHAT}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={HEADER: given}, trust_env=False)
            assert answer.status_code == 503
    assert engine.bodies == []


def test_the_token_is_not_in_the_settings_text() -> None:
    assert TOKEN not in repr(FrontSettings(("tiny",), ("apc",), opened="x", token=TOKEN))


def test_the_canary_alone_chooses_the_engine_and_only_until_the_names_are_open(tmp_path: Path) -> None:
    gate = Gate(str(tmp_path / "open"), TOKEN)
    rank, known = (RANK.lower().encode(), b"1"), (HEADER.lower().encode(), f"{TOKEN} 0.5".encode())
    assert gate.rank([rank, known]) == {RANK: "1"}
    assert gate.rank([known]) == gate.rank([rank]) == gate.rank([rank, (known[0], b"wrong 0.5")]) == {}
    (tmp_path / "open").touch()
    assert gate.rank([rank, known]) == {}
