"""Faults of a server told apart: those that are waited out, those that cost one answer, those that end the run."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from openai_endpoint import OpenAIEndpoint, Reply
from server_faults import KEPT, choice, guard_off, once, status, told_knobs, web_page, without_proof
from server_runs import SMALL, ask_some

from lvlm_guard.endpoint import Endpoint
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.tasks import tasks_of


@pytest.fixture(scope="module")
def texts(unbroken: Any) -> Any:
    """What AGLA answers to the task's items."""
    return [row["text"] for row in unbroken if (row["decoder"], row["split"]) == ("agla", "test")]


STOPS: list[tuple[str, Any, str]] = [
    ("busy for ever", status(503), "answered 503, tried 6 times.*3 requests in a row" + KEPT),
    ("rate limit for ever", status(429), "answered 429, tried 6 times.*3 requests in a row" + KEPT),
    ("key withdrawn", status(401), "wants a key" + KEPT),
    ("model gone", status(404), "answered 404: .*3 requests in a row" + KEPT),
    ("forbidden for ever", status(403), r"\(403\).*3 requests in a row" + KEPT),
    ("a page", web_page, "content type text/html.*Sign in.*3 requests in a row" + KEPT),
    ("not json", lambda *_: Reply(200, "{"), "3 requests in a row" + KEPT),
    (
        "no choices",
        lambda _, reply: replace(reply, body=reply.body | {"choices": []}),
        "gave no chat completion" + KEPT,
    ),
    ("no message", choice(message=None), "without a message" + KEPT),
    ("no proof", without_proof, "does not say whether its guard ran.*was not taken"),
    ("guard off", guard_off, "says that no guard ran.*was not taken"),
    ("other guard", lambda _, r: replace(r, headers={"X-VOTE": "on"}, body=r.body | {"lvlm_guard": None}), "not agla"),
    ("other knobs", told_knobs(alpha=1.0), r"changed its guard in the middle of the run \(alpha: 2.0, now 1.0\)"),
]


@pytest.mark.parametrize(("fault", "told"), [row[1:] for row in STOPS], ids=[row[0] for row in STOPS])
def test_what_no_further_question_can_mend_ends_the_run_and_says_how_to_go_on(asked, fault, told):
    served, task, asker = asked
    with served.faulty(fault), pytest.raises(RunError, match=told):
        _ = [ask_some(asker, task, [item], [("agla", 0)]) for item in task.items]
    assert len(served.seen) <= 3 * 6


FAILED: list[tuple[str, Any, str]] = [
    ("refused", status(400), "answered 400: .*out of order"),
    ("too large", status(413), "answered 413: .*out of order"),
    ("forbidden", status(403), "403"),
    ("not found", status(404), "404"),
    ("one page", web_page, "content type text/html"),
    ("filtered", choice(finish_reason="content_filter"), "ended the answer with 'content_filter'"),
]


@pytest.mark.parametrize(("fault", "told"), [row[1:] for row in FAILED], ids=[row[0] for row in FAILED])
def test_one_request_that_fails_is_a_failed_answer_and_no_text(asked, fault, told):
    served, task, asker = asked
    with served.faulty(once(1, fault)):
        said = [ask_some(asker, task, [item], [("agla", 0)])[0][0] for item in task.items[:3]]
    assert [each.failed is not None for each in said] == [False, True, False]
    assert said[1].text == ""
    assert re.search(told, said[1].failed)


def test_a_server_that_goes_away_ends_the_run_and_says_how_to_go_on(pair):
    with OpenAIEndpoint(pair) as leaving:
        settings = replace(SMALL, server=leaving.url)
        (task,) = tasks_of(settings)
        _, asker, _ = server_run(settings, Endpoint(leaving.url, retries=0))
    with pytest.raises(RunError, match="can't be reached" + KEPT):
        ask_some(asker, task, task.items[:1], [("agla", 0)])


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_fails_for_a_while_is_asked_again(asked, texts, code):
    served, task, asker = asked
    with served.faulty(lambda r, reply: reply if r.number % 3 == 0 else status(code)(r, reply)):
        (said,) = ask_some(asker, task, task.items[:4], [("agla", 0)])
    assert [one.text for one in said] == texts[:4]
    assert not any(one.failed for one in said)


def test_retry_after_is_heeded(served):
    with served.faulty(lambda r, reply: status(429, {"Retry-After": "0.7"})() if r.number == 0 else reply):
        began = time.monotonic()
        server_run(replace(SMALL, server=served.url, methods=("greedy",)))
        assert 0.7 <= time.monotonic() - began < 5


@pytest.mark.slow
def test_a_server_that_hangs_is_told_and_not_waited_for_for_ever(served):
    settings = replace(SMALL, methods=("greedy",), server=served.url)
    (task,) = tasks_of(settings)
    _, asker, _ = server_run(settings, Endpoint(served.url, timeout=2.0, retries=0))
    with (
        served.faulty(lambda _, reply: replace(reply, wait=3.0)),
        pytest.raises(RunError, match=r"did not answer within 2 s \(tried once\).*3 requests in a row" + KEPT),
    ):
        ask_some(asker, task, task.items[:3], [("greedy", 0)])


@pytest.mark.slow
def test_one_answer_that_comes_too_late_is_asked_again_and_ends_no_run(served):
    settings = replace(SMALL, methods=("greedy",), server=served.url)
    (task,) = tasks_of(settings)
    late = once(1, lambda _, reply: replace(reply, wait=4.0))
    _, patient, _ = server_run(settings, Endpoint(served.url, timeout=2.5, retries=1))
    with served.faulty(late):
        (said,) = ask_some(patient, task, task.items[:3], [("greedy", 0)])
    assert [each.failed for each in said] == [None] * 3
    _, asker, _ = server_run(settings, Endpoint(served.url, timeout=2.5, retries=0))
    with served.faulty(late):
        (said,) = ask_some(asker, task, task.items[:3], [("greedy", 0)])
    assert [bool(each.failed) for each in said] == [False, True, False]
    assert "did not answer within 2.5 s" in said[1].failed


@pytest.mark.parametrize("content", ["", None])
def test_an_answer_without_text_is_an_empty_one(asked, content):
    served, task, asker = asked
    with served.faulty(choice(message={"role": "assistant", "content": content})):
        ((said,),) = ask_some(asker, task, task.items[:1], [("agla", 0)])
    assert (said.text, said.failed) == ("", None)
