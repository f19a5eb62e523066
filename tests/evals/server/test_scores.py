"""Scores from the log-probabilities that a server tells; where it tells less, the run says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionTokenLogprob
from openai_endpoint import Reply, Request
from server_faults import choice, status
from server_runs import SMALL, ask_some, go, rows

from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.infer.server.endpoint import cut_at, odds
from lvlm_guard.evals.tasks import tasks_of


def token(text: str, likeliest: Any = (), logprob: float = -0.1) -> ChatCompletionTokenLogprob:
    top = [{"token": other, "logprob": value} for other, value in likeliest]
    return ChatCompletionTokenLogprob.model_validate({"token": text, "logprob": logprob, "top_logprobs": top})


@pytest.mark.parametrize(
    ("likeliest", "yes", "no"),
    [
        ([("yes", -0.1), (" Yes", -3.0), ("no", -2.5), ("the", -9.0)], math.exp(-0.1) + math.exp(-3.0), math.exp(-2.5)),
        ([("\u2581No", -0.2), ("\u0120yes", -2.0), ("NO", -4.0)], math.exp(-2.0), math.exp(-0.2) + math.exp(-4.0)),
    ],
)
def test_spellings_of_a_word_are_summed(likeliest, yes, no):
    score, mass, censored = odds(token("x", likeliest))
    assert (score, mass) == (pytest.approx(math.log(yes / no)), pytest.approx(yes + no))
    assert not censored


def test_a_word_that_is_not_among_the_likeliest_counts_at_the_smallest_and_is_marked():
    told = [("yes", -0.1), ("maybe", -3.0), ("perhaps", -7.5), ("no", -9999.0), ("not", -math.inf), ("nose", -4.0)]
    assert odds(token("yes", told)) == (pytest.approx(7.4), pytest.approx(math.exp(-0.1)), True)
    assert odds(token("a", [("a", -0.1), ("b", -2.0)])) == (0.0, 0.0, True)
    assert odds(token("a")) is None


def test_where_the_tokens_of_a_caption_end_is_told_by_those_that_spell_it():
    words = ["", "a", " big", " dog", ".", ""]
    tokens, text = [token(word) for word in words], "a big dog."
    assert cut_at(tokens, text, text, (1, 2, 3, 5, 512)) == (0, 1, 5, 10, 10)
    assert cut_at(tokens, " a big dog.", text, (1,)) is None
    assert cut_at((), text, text, (1,)) is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses", "ignores"])
def test_a_server_without_log_probabilities_is_asked_without_and_the_run_says_so(served, tmp_path, how):
    def fault(request: Request, reply: Reply) -> Reply:
        if how == "refuses" and request.body.get("logprobs"):
            return status(400)(request, reply)
        return choice(logprobs=None)(request, reply) if reply.status == 200 else reply

    with served.faulty(fault):
        folder = go(served, tmp_path, replace(SMALL, controls=True, methods=("greedy",), seeds=1))
    told = json.loads((folder / "asked.json").read_text())
    assert any("tells no log-probabilities" in flag for flag in told["flags"])
    assert not [d["name"] for d in told["decoders"] if d["derive"]], "nothing can be derived without scores"
    assert {(row["score"], row["failed"]) for row in rows(folder)} == {(None, None)}


def test_a_server_that_tells_neither_usage_nor_why_an_answer_ended_is_flagged(served):
    def bare(_: Request, reply: Reply) -> Reply:
        body = reply.body | {"choices": [reply.body["choices"][0] | {"finish_reason": None}]}
        return replace(reply, body={k: v for k, v in body.items() if k != "usage"})

    settings = replace(SMALL, methods=("greedy",), server=served.url)
    (task,) = tasks_of(settings)
    with served.faulty(bare):
        _, asker, flags = server_run(settings)
        ((said, *_),) = ask_some(asker, task, task.items[:2], [("greedy", 0)])
        ((short, *_),) = ask_some(asker, replace(task, max_new_tokens=1), task.items[:1], [("greedy", 0)])
    assert any("tokens are counted in words" in flag for flag in flags)
    assert any("does not say why an answer ended" in flag for flag in flags)
    assert (said.tokens, said.ended, short.ended) == (1, True, False)
