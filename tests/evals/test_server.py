"""A run against a server: the answers of the model in process, proof of every guard, and every fault told apart."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import socket
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionTokenLogprob
from openai_endpoint import OpenAIEndpoint, Reply, Request, load
from typer.testing import CliRunner

from lvlm_guard.cli.app import app
from lvlm_guard.endpoint import Endpoint
from lvlm_guard.errors import GuardError, KnobError, ServerError, UnknownNameError
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.infer.server.asker import ServerAsker, document_seed
from lvlm_guard.evals.infer.server.endpoint import cut_at, odds
from lvlm_guard.evals.infer.store import Job
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import tasks_of

SMALL = Settings(tasks=("world_pope",), methods=("agla",), controls=False, limit=1, batch=4)
SOON = {"Retry-After": "0.01"}


@pytest.fixture(scope="module")
def pair() -> Any:
    return load()


@pytest.fixture(scope="module")
def served(pair: Any) -> Any:
    with OpenAIEndpoint(pair, guards=("agla", "vote", "apc")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask_some(asker: ServerAsker, task: Any, items: Any, todo: Any) -> Any:
    """Return the answers of each (decoder, seed) to some items of a task."""
    found = {}
    jobs = (Job(0, task, place, [item], tuple(todo)) for place, item in enumerate(items))
    asker.ask_all(jobs, lambda job, who, said: found.update({(job.block, who): said[0]}))
    return [[found[place, who] for place in range(len(items))] for who in todo]


def quiet(_: str) -> None:
    pass


def rows(folder: Any, *without: str) -> list[dict[str, Any]]:
    told = pq.read_table(folder / "answers.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in without} for row in told]


def go(served: Any, folder: Any, settings: Settings = SMALL, **options: Any) -> Any:
    return ask(replace(settings, server=served.url), folder, echo=quiet, bar=False, **options)


@pytest.fixture(scope="module")
def unbroken(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return rows(go(served, tmp_path_factory.mktemp("unbroken")))


@pytest.fixture(scope="module")
def texts(unbroken: Any) -> Any:
    """What AGLA answers to the task's items."""
    return [row["text"] for row in unbroken if (row["decoder"], row["split"]) == ("agla", "test")]


@pytest.fixture(scope="module")
def ready(served: Any) -> Any:
    settings = replace(SMALL, server=served.url)
    return served, tasks_of(settings)[0], server_run(settings)[1]


@pytest.fixture
def asked(ready: Any) -> Any:
    """The endpoint, a task, and an asker that has had its first proofs and no failures."""
    served, task, asker = ready
    return served, task, ServerAsker(asker.endpoint, 1, asker.lines, dict(asker.proofs), asker.tells)


UNMEASURED = ("forwards", "local_forwards", "local_tokens", "masks")
OWN = (*UNMEASURED, "score", "mass", "censored", "proof")


@pytest.mark.slow
def test_a_run_through_a_server_has_the_answers_of_a_run_in_process(served, tmp_path):
    both = replace(SMALL, tasks=("world_pope", "world_chair"), methods=("agla", "vote"), limit=2, batch=8)
    ours = rows(ask(both, tmp_path / "in", echo=quiet, bar=False, workers=1))
    served.most_at_once = 0
    theirs = rows(go(served, tmp_path / "through", both, concurrency=8))
    assert [{k: v for k, v in row.items() if k not in OWN} for row in theirs] == [
        {k: v for k, v in row.items() if k not in OWN} for row in ours
    ]
    assert len({row["text"] for row in theirs if row["task"] == "world_chair"}) > 2
    assert 4 < served.most_at_once <= 8
    assert {row[name] for row in theirs for name in UNMEASURED} == {None}, "what can't be measured is not zero"
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a["decoder"] == "greedy" and a["score"] is not None]
    assert len(pairs) > 20
    for one, other in pairs:  # a plain model's score is that of one in process, but for words beyond the likeliest
        assert other["score"] == pytest.approx(one["score"], abs=1e-3)
        assert other["mass"] == pytest.approx(one["mass"], abs=1e-3)
    assert {row["score"] for row in theirs if row["task"] == "world_chair"} == {None}


@pytest.mark.slow
def test_neither_requests_in_flight_nor_their_order_decide_a_byte(served, tmp_path):
    one, many = (go(served, tmp_path / str(count), concurrency=count) for count in (1, 9))
    assert (one / "answers.parquet").read_bytes() == (many / "answers.parquet").read_bytes()
    told = [json.loads((folder / "asked.json").read_text()) for folder in (one, many)]
    assert told[0]["identity"] == told[1]["identity"]
    went_on = go(served, many, replace(SMALL, batch=32), concurrency=2)
    assert went_on == many


def test_every_guarded_answer_is_kept_with_its_proof(unbroken):
    proofs = {row["decoder"]: set() for row in unbroken}
    for row in unbroken:
        proofs[row["decoder"]].add(row["proof"])
    assert {name: len(told) for name, told in proofs.items()} == {"greedy": 1, "agla": 1}
    assert json.loads(*proofs["agla"]) == {"knobs": {"alpha": 2, "beta": 0.5, "mask": "blip-v1"}, "method": "agla"}
    assert json.loads(*proofs["greedy"])["method"] is None


def test_a_million_questions_wait_in_no_memory(asked):
    """The queue takes a job when a request is free for it, never ahead."""
    _, task, asker = asked
    begun, told = [], []

    def jobs():
        for number, item in enumerate(task.items[:12]):
            begun.append(number)
            yield Job(0, task, number, [item], (("greedy", 0),))

    asker.ask_all(jobs(), lambda job, who, said: told.append(len(begun)))
    assert len(told) == 12
    assert told[0] <= 2 * asker.at_once


def token(text: str, likeliest: Any = (), logprob: float = -0.1) -> ChatCompletionTokenLogprob:
    top = [{"token": other, "logprob": value} for other, value in likeliest]
    return ChatCompletionTokenLogprob.model_validate({"token": text, "logprob": logprob, "top_logprobs": top})


@pytest.mark.parametrize(
    ("likeliest", "expected"),
    [
        ([("yes", -0.1), (" Yes", -3.0), ("no", -2.5), ("the", -9.0)], (-0.1, -3.0, -2.5)),
        ([("\u2581No", -0.2), ("\u0120yes", -2.0), ("NO", -4.0)], None),
    ],
)
def test_spellings_of_a_word_are_summed(likeliest, expected):
    score, mass, censored = odds(token("x", likeliest))
    yes = sum(math.exp(v) for text, v in likeliest if text.strip(" \u2581\u0120").lower() == "yes")
    no = sum(math.exp(v) for text, v in likeliest if text.strip(" \u2581\u0120").lower() == "no")
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


def test_the_endpoint_serves_the_official_client(served):
    client = OpenAI(base_url=served.url, api_key="any")
    assert [model.id for model in client.models.list()] == [
        "embedded",
        "embedded-agla",
        "embedded-vote",
        "embedded-apc",
    ]
    (item, *_) = tasks_of(SMALL)[0].items
    file = BytesIO()
    item.pictures()[0].save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    talk = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": item.prompt}],
        }
    ]
    raw = client.chat.completions.with_raw_response.create(
        model="embedded-agla", messages=talk, max_tokens=4, temperature=0, extra_body={"vllm_xargs": {"agla_alpha": 1}}
    )
    assert raw.headers["x-agla"] == "on; alpha=1; beta=0.5; mask=blip-v1"
    told = raw.parse()
    assert told.choices[0].message.content in (" yes", " no")
    assert told.choices[0].finish_reason == "stop"
    assert told.usage.completion_tokens == 2
    assert told.lvlm_guard == {"method": "agla", "knobs": {"alpha": 1, "beta": 0.5, "mask": "blip-v1"}}


@pytest.mark.slow
def test_samples_depend_on_the_document_and_the_seed_alone(served):
    settings = replace(SMALL, methods=("agla", "sample"), server=served.url, controls=True)
    (task,) = tasks_of(settings)
    found = {}
    for batch in (1, 3):
        decoders, asker, _ = server_run(settings, concurrency=batch)
        assert {d.name: d.seeds for d in decoders}["agla-sample"] == 3
        served.seen = []
        items = task.items[:3]
        blocks = [items] if batch == 3 else [[item] for item in items]
        for name, seed in (("sample", 0), ("sample", 1), ("agla-sample", 0), ("sample-matched", 0)):
            said = [one.text for block in blocks for one in ask_some(asker, task, block, [(name, seed)])[0]]
            found.setdefault((name, seed), []).append(said)
        first = sorted(r.body["seed"] for r in served.seen[:3])
        assert first == sorted(document_seed(0, item.key) for item in items)
    assert all(one == three for one, three in found.values())
    assert {(r.body["model"], round(r.body["temperature"], 3), r.body["top_k"]) for r in served.seen} == {
        ("embedded", 1.0, -1),
        ("embedded-agla", 1.0, -1),
        ("embedded", 0.333, -1),
    }


def test_controls_follow_the_knobs_that_the_server_has(pair):
    with OpenAIEndpoint(pair, usual={"agla": {"alpha": 1.0}}) as other:
        decoders, _, flags = server_run(replace(SMALL, server=other.url, controls=True))
    by_name = {d.name: d for d in decoders}
    assert by_name["agla"].knobs == {"alpha": 1.0, "beta": 0.5, "mask": "blip-v1"}
    assert by_name["sample-matched"].options["temperature"] == 0.5
    controls = {"prompt-yes", "prompt-no", "tilt", "olm"}
    assert set(by_name) == {"greedy", "sample", "sample-matched", "agla", "agla-sample"} | controls
    assert any("left out: agla-random, apc." in flag for flag in flags)


def test_knobs_and_sweeps_are_sent_and_proved(served):
    settings = replace(SMALL, server=served.url, knobs={"agla": {"alpha": 1.5}}, split="val")
    decoders, _, _ = server_run(settings)
    assert {d.name: d.knobs.get("alpha") for d in decoders} == {"greedy": None, "agla": 1.5}
    served.seen = []
    decoders, _, _ = server_run(replace(settings, knobs={}, sweep={"alpha": (0.5, 1.0), "beta": (0.1,)}))
    points = [d for d in decoders if d.point]
    assert [d.knobs for d in points] == [
        {"alpha": 0.5, "beta": 0.1, "mask": "blip-v1"},
        {"alpha": 1.0, "beta": 0.1, "mask": "blip-v1"},
    ]
    assert [r.body["vllm_xargs"] for r in served.seen if "vllm_xargs" in r.body] == [
        {"agla_alpha": 0.5, "agla_beta": 0.1},
        {"agla_alpha": 1.0, "agla_beta": 0.1},
    ]


def test_a_name_with_o1_in_it_keeps_the_temperature(pair):
    with OpenAIEndpoint(pair, plain="llava-o1") as other:
        server_run(replace(SMALL, model="llava-o1", server=other.url))
        assert {(r.body["temperature"], r.body["max_tokens"]) for r in other.seen} == {(0.0, 4)}


REFUSED: list[tuple[dict[str, Any], type[GuardError], str]] = [
    ({"model": "embeded"}, KnobError, r"no model 'embeded'.*Did you mean 'embedded'\?.*embedded-agla"),
    ({"methods": ("vcd",)}, KnobError, r"no model 'embedded-vcd'.*leave vcd out of --methods"),
    ({"methods": ("alga",)}, UnknownNameError, "'alga'.*'agla'"),
    ({"methods": ("agla", "agla-random")}, DataError, "'agla-random' needs the matcher itself"),
    ({"methods": ("agla", "matcher")}, DataError, "'matcher' needs the matcher itself"),
    ({"model": "embedded-agla", "methods": ("greedy",)}, RunError, "answers with the guard agla on.*the plain name"),
    ({"knobs": {"agla": {"mode": "official"}}}, KnobError, "takes no knob 'mode' for agla. It has: alpha, beta"),
    ({"knobs": {"agla": {"alpha": -1}}}, KnobError, "alpha"),
    ({"device": "cuda"}, DataError, "device is the server's own"),
    ({"dtype": "float16"}, DataError, "dtype is the server's own"),
    ({"server": "127.0.0.1:8000"}, KnobError, "no address of a server"),
    ({"server": "http://127.0.0.1:eighty/v1"}, KnobError, "no address of a server"),
    ({"server": "ftp://host/v1"}, KnobError, "no address of a server"),
    ({"server": "http://me:secret@host/v1"}, KnobError, "may hold no password"),
]


@pytest.mark.parametrize(("changes", "error", "told"), REFUSED, ids=[str(changes) for changes, _, _ in REFUSED])
def test_what_a_server_cannot_be_asked_is_refused_before_any_question(served, changes, error, told):
    with pytest.raises(error, match=told):
        server_run(replace(SMALL, **({"server": served.url} | changes)))


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_is_taken_however_it_ends(ending):
    assert Endpoint("http://host:8000" + ending).url == "http://host:8000/v1"
    assert Endpoint("https://host/some/path/").url == "https://host/some/path"


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"can't be reached.*Is the server running.*Nothing was asked"):
            server_run(SMALL, Endpoint(url, retries=0))


def test_a_web_page_is_no_endpoint(served):
    with pytest.raises(ServerError, match=r"404.*Nothing was asked"):
        server_run(SMALL, Endpoint(served.url.replace("/v1", "/other"), retries=0))


def test_a_wrong_key_is_told_at_once_and_a_right_one_works(pair, monkeypatch):
    with OpenAIEndpoint(pair, key="right") as locked:
        settings = replace(SMALL, server=locked.url, methods=("greedy",))
        began = time.monotonic()
        with pytest.raises(ServerError, match="wants a key, and OPENAI_API_KEY is not set"):
            server_run(settings)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(ServerError, match="refuses the key in OPENAI_API_KEY"):
            server_run(settings)
        assert time.monotonic() - began < 3, "a key does not get better by trying again"
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert [d.name for d in server_run(settings)[0]] == ["greedy"]


def test_a_prompt_without_a_picture_is_answered_plainly_under_a_guarded_name_and_several_turns_are_sent(asked):
    served, task, asker = asked
    (item,) = task.items[:1]
    words = replace(item, images=())
    turns = replace(
        item,
        key="turns",
        talk=lambda: [
            {"role": "user", "content": [{"type": "image", "url": item.pictures()[0]}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": item.prompt},
        ],
    )
    served.seen = []
    ((plain, guarded),) = ask_some(asker, task, [words, turns], [("agla", 0)])
    assert (plain.failed, guarded.failed) == (None, None)
    bodies = {len(r.body["messages"]): r.body["messages"] for r in served.seen}
    assert [turn["role"] for turn in bodies[3]] == ["user", "assistant", "user"]
    assert bodies[3][2]["content"] == [{"type": "text", "text": item.prompt}]
    assert bodies[1] == [{"role": "user", "content": [{"type": "text", "text": item.prompt}]}]
    with served.faulty(guard_off), pytest.raises(RunError, match="no guard ran"):
        ask_some(asker, task, [turns], [("agla", 0)])


def without_proof(request: Request, reply: Reply) -> Reply:
    if request.body["model"] == "embedded":  # a plain answer needs none, and may come after the fault began
        return reply
    body = {name: value for name, value in reply.body.items() if name != "lvlm_guard"}
    return replace(reply, headers={}, body=body)


def after(first: int, fault: Any) -> Any:
    """A fault that begins at a request."""
    return lambda request, reply: reply if request.number < first else fault(request, reply)


def status(code: int, headers: dict[str, str] | None = None) -> Any:
    told = {"error": {"message": "out of order", "type": "error", "code": code}}
    return lambda *_: Reply(code, told, headers or SOON)


def page(*_: Any) -> Reply:
    return Reply(200, "<html><body>Sign in</body></html>", kind="text/html")


def told_knobs(**knobs: Any) -> Any:
    def fault(_: Request, reply: Reply) -> Reply:
        guard = reply.body["lvlm_guard"]
        if guard["method"] is None:
            return reply
        return replace(reply, headers={}, body=reply.body | {"lvlm_guard": guard | {"knobs": guard["knobs"] | knobs}})

    return fault


def test_a_guarded_name_that_does_not_prove_its_guard_is_never_asked_a_question(served, tmp_path):
    with served.faulty(without_proof), pytest.raises(RunError, match="does not say whether its guard ran"):
        go(served, tmp_path)
    assert len(served.seen) == 1, "only the small picture was asked about"


def test_header_or_body_alone_prove_a_guard_and_a_contradiction_does_not(served):
    settings = replace(SMALL, server=served.url)
    with served.faulty(lambda _, reply: replace(reply, headers={})):
        assert {d.name: d.knobs.get("alpha") for d in server_run(settings)[0]}["agla"] == 2.0
    with served.faulty(lambda r, reply: replace(without_proof(r, reply), headers=reply.headers)):
        assert {d.name: d.knobs.get("alpha") for d in server_run(settings)[0]}["agla"] == 2.0
    off = {"lvlm_guard": {"method": None, "knobs": {}}}
    with (
        served.faulty(lambda _, reply: replace(reply, body=reply.body | off)),
        pytest.raises(RunError, match="different guards for one answer"),
    ):
        server_run(settings)


def test_a_guard_with_other_knobs_than_asked_for_is_refused(served):
    settings = replace(SMALL, server=served.url, knobs={"agla": {"alpha": 1.5}})
    with served.faulty(told_knobs(alpha=2.0)), pytest.raises(RunError, match=r"asked for alpha=1.5 and .* alpha=2.0"):
        server_run(settings)


def test_a_server_that_goes_away_ends_the_run_and_says_how_to_go_on(pair):
    with OpenAIEndpoint(pair) as leaving:
        settings = replace(SMALL, server=leaving.url)
        (task,) = tasks_of(settings)
        _, asker, _ = server_run(settings, Endpoint(leaving.url, retries=0))
    with pytest.raises(RunError, match="can't be reached" + KEPT):
        ask_some(asker, task, task.items[:1], [("agla", 0)])


def one(place: int, fault: Any) -> Any:
    return lambda request, reply: fault(request, reply) if request.number == place else reply


def choice(**changes: Any) -> Any:
    def fault(_: Request, reply: Reply) -> Reply:
        return replace(reply, body=reply.body | {"choices": [reply.body["choices"][0] | changes]})

    return fault


def guard_off(_: Request, reply: Reply) -> Reply:
    return replace(reply, headers={"X-AGLA": "off"}, body=reply.body | {"lvlm_guard": None})


KEPT = ".*the same command goes on from there"
STOPS: list[tuple[str, Any, str]] = [
    ("busy for ever", status(503), "answered 503, tried 6 times.*3 requests in a row" + KEPT),
    ("rate limit for ever", status(429), "answered 429, tried 6 times.*3 requests in a row" + KEPT),
    ("key withdrawn", status(401), "wants a key" + KEPT),
    ("model gone", status(404), "answered 404: .*3 requests in a row" + KEPT),
    ("forbidden for ever", status(403), r"\(403\).*3 requests in a row" + KEPT),
    ("a page", page, "content type text/html.*Sign in.*3 requests in a row" + KEPT),
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", [status(500), without_proof], ids=["answers 500", "loses its guard"])
def test_a_run_that_a_server_ends_keeps_its_answers_and_goes_on_to_the_same_end(served, unbroken, tmp_path, fault):
    with served.faulty(after(12, fault)), pytest.raises(RunError):
        go(served, tmp_path, concurrency=4)
    lines = [json.loads(line) for path in (tmp_path / "answers").iterdir() for line in path.open()]
    kept = sum(line["failed"] is None for line in lines)
    assert kept >= 5
    assert not (tmp_path / "answers.parquet").exists()
    served.seen = []
    assert rows(go(served, tmp_path)) == unbroken
    assert len(served.seen) == 3 + len(unbroken) - kept, "what was kept is not asked again"


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
    late = one(1, lambda _, reply: replace(reply, wait=4.0))
    _, patient, _ = server_run(settings, Endpoint(served.url, timeout=2.5, retries=1))
    with served.faulty(late):
        (said,) = ask_some(patient, task, task.items[:3], [("greedy", 0)])
    assert [each.failed for each in said] == [None] * 3
    _, asker, _ = server_run(settings, Endpoint(served.url, timeout=2.5, retries=0))
    with served.faulty(late):
        (said,) = ask_some(asker, task, task.items[:3], [("greedy", 0)])
    assert [bool(each.failed) for each in said] == [False, True, False]
    assert "did not answer within 2.5 s" in said[1].failed


FAILED: list[tuple[str, Any, str]] = [
    ("refused", status(400), "answered 400: .*out of order"),
    ("too large", status(413), "answered 413: .*out of order"),
    ("forbidden", status(403), "403"),
    ("not found", status(404), "404"),
    ("one page", page, "content type text/html"),
    ("filtered", choice(finish_reason="content_filter"), "ended the answer with 'content_filter'"),
]


@pytest.mark.parametrize(("fault", "told"), [row[1:] for row in FAILED], ids=[row[0] for row in FAILED])
def test_one_request_that_fails_is_a_failed_answer_and_no_text(asked, fault, told):
    served, task, asker = asked
    with served.faulty(one(1, fault)):
        said = [ask_some(asker, task, [item], [("agla", 0)])[0][0] for item in task.items[:3]]
    assert [each.failed is not None for each in said] == [False, True, False]
    assert said[1].text == ""
    assert re.search(told, said[1].failed)


@pytest.mark.slow
def test_one_bad_request_is_one_row_that_failed_and_is_asked_again_by_the_same_command(served, unbroken, tmp_path):
    with served.faulty(one(9, status(400))):
        folder = go(served, tmp_path)
    (row,) = [row for row in rows(folder) if row["failed"] is not None]
    assert re.search("answered 400: .*out of order", row["failed"])
    assert row["text"] == ""
    assert len(rows(folder)) == len(unbroken)
    served.seen = []
    assert rows(go(served, tmp_path)) == unbroken
    assert len(served.seen) == 3 + 1, "beside the small pictures, what failed alone"


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "code"), [("all", 3), ("one", 0), ("none", 0)])
def test_eval_ask_counts_what_failed_with_the_first_reason_and_exits_3_where_that_is_all(
    served, tmp_path, failing, code
):
    words = ["eval", "ask", "--server", served.url, "--tasks", "world_pope", "--methods", "agla", "--no-controls"]
    words += ["--limit", "1", "--out", str(tmp_path), "--json"]
    faults = {"all": after(3, status(400)), "one": one(9, status(400)), "none": lambda _, reply: reply}
    with served.faulty(faults[failing]):
        done = CliRunner().invoke(app, words)
    total = len(rows(tmp_path))
    failed = {"all": total, "one": 1, "none": 0}[failing]
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout)["failed"] == failed
    said = f"{failed} of {total} answers failed, the first as {served.url} answered 400: Error code: 400"
    assert (said in done.stderr.replace("\n", " ")) is bool(failed)
    assert ("Void:" in done.stderr) is (failing == "all")


@pytest.mark.parametrize("content", ["", None])
def test_an_answer_without_text_is_an_empty_one(asked, content):
    served, task, asker = asked
    with served.faulty(choice(message={"role": "assistant", "content": content})):
        ((said,),) = ask_some(asker, task, task.items[:1], [("agla", 0)])
    assert (said.text, said.failed) == ("", None)


def test_ctrl_c_cancels_what_is_in_flight(asked):
    served, task, asker = asked
    told = []

    def took(*_: Any) -> None:
        told.append(1)
        raise KeyboardInterrupt

    with served.faulty(lambda r, reply: replace(reply, wait=0.0 if r.number == 0 else 5.0)):
        began = time.monotonic()
        with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
            asker.ask_all((Job(0, task, n, [i], (("greedy", 0),)) for n, i in enumerate(task.items)), took)
        assert time.monotonic() - began < 4
    assert told == [1]


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
