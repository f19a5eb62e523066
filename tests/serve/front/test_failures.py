"""Where a matcher, an engine or a client fails there is an error, and never an unguarded answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from front_server import data_url, turn
from front_site import CHAT, IMAGE, Site


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
