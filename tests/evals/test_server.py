"""A run against a server: the answers of the model in process, proof of every guard, and every fault told apart."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from openai import OpenAI
from openai_endpoint import OpenAIEndpoint, Reply, Request, load

from lvlm_guard.errors import GuardError, KnobError, UnknownNameError
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer.run import run
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.infer.server.asker import ServerAsker, document_seed
from lvlm_guard.evals.infer.server.endpoint import Endpoint
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


def quiet(_: str) -> None:
    pass


def answers(folder: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def go(served: Any, folder: Any, settings: Settings = SMALL) -> Any:
    return run(replace(settings, server=served.url), folder, echo=quiet, bar=False, report=False)


@pytest.fixture(scope="module")
def unbroken(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("unbroken")
    assert go(served, folder).run["status"] == "complete"
    return answers(folder)


@pytest.fixture(scope="module")
def ready(served: Any) -> Any:
    settings = replace(SMALL, server=served.url)
    return served, tasks_of(settings)[0], server_run(settings)[1]


@pytest.fixture
def asked(ready: Any) -> Any:
    """The endpoint, a task, and an asker that has had its first proofs and no failures."""
    served, task, asker = ready
    return served, task, ServerAsker(asker.endpoint, asker.lines, asker.decoders, asker.sent, dict(asker.proofs))


def test_a_run_through_a_server_has_the_answers_and_scores_of_a_run_in_process(served, tmp_path):
    both = replace(SMALL, tasks=("world_pope", "world_chair"), methods=("agla", "vote"), limit=2, batch=8)
    ours = run(both, tmp_path / "in", echo=quiet, bar=False, report=False, workers=1)
    served.most_at_once = 0
    theirs = go(served, tmp_path / "through", both)
    assert [s["answers"] for s in theirs.samples] == [s["answers"] for s in ours.samples]
    assert [s["ended"] for s in theirs.samples] == [s["ended"] for s in ours.samples]
    assert any(s["answers"]["agla"] != s["answers"]["greedy"] for s in theirs.samples)
    seen = ("forwards", "masks", "local_tokens")
    rows = [[r for r in each.run["rows"] if not r["metric"].endswith(seen)] for each in (ours, theirs)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 100
    assert theirs.run["status"] == "complete"
    assert 1 < served.most_at_once <= 8
    calls = [r["value"] for r in theirs.run["rows"] if r["metric"].endswith(seen)]
    assert calls
    assert set(calls) == {None}, "what can't be measured is not zero"


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


def test_samples_depend_on_the_document_and_the_seed_alone(served):
    settings = replace(SMALL, methods=("agla", "sample"), server=served.url, controls=True)
    (task,) = tasks_of(settings)
    found = {}
    for batch in (1, 3):
        decoders, asker, _ = server_run(replace(settings, batch=batch))
        assert {d.name: d.seeds for d in decoders}["agla-sample"] == 3
        served.seen = []
        items = task.items[:3]
        blocks = [items] if batch == 3 else [[item] for item in items]
        for name, seed in (("sample", 0), ("sample", 1), ("agla-sample", 0), ("sample-matched", 0)):
            said = [one.text for block in blocks for one in asker.ask(task, block, [(name, seed)])[0]]
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
    assert set(by_name) == {"greedy", "sample", "sample-matched", "agla", "agla-sample"}
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


def test_a_name_that_would_make_lmms_eval_drop_the_temperature_keeps_it(pair):
    with OpenAIEndpoint(pair, plain="llava-o1") as other:
        server_run(replace(SMALL, model="llava-o1", server=other.url))
        assert {(r.body["temperature"], r.body["max_tokens"]) for r in other.seen} == {(0.0, 4)}


REFUSED: list[tuple[dict[str, Any], type[GuardError], str]] = [
    ({"model": "embeded"}, DataError, r"no model 'embeded'.*Did you mean 'embedded'\?.*embedded-agla"),
    ({"methods": ("vcd",)}, DataError, r"no model 'embedded-vcd'.*leave vcd out of --methods"),
    ({"methods": ("alga",)}, UnknownNameError, "'alga'.*'agla'"),
    ({"methods": ("agla", "agla-random")}, DataError, "'agla-random' needs the matcher itself"),
    ({"methods": ("agla", "matcher")}, DataError, "'matcher' needs the matcher itself"),
    ({"model": "embedded-agla", "methods": ("greedy",)}, RunError, "answers with the guard agla on.*the plain name"),
    ({"knobs": {"agla": {"mode": "official"}}}, KnobError, "takes no knob 'mode' for agla. It has: alpha, beta"),
    ({"knobs": {"agla": {"alpha": -1}}}, KnobError, "alpha"),
    ({"device": "cuda"}, DataError, "device is the server's own"),
    ({"dtype": "float16"}, DataError, "dtype is the server's own"),
    ({"server": "127.0.0.1:8000"}, DataError, "no address of a server"),
    ({"server": "http://127.0.0.1:eighty/v1"}, DataError, "no address of a server"),
    ({"server": "ftp://host/v1"}, DataError, "no address of a server"),
    ({"server": "http://me:secret@host/v1"}, DataError, "may hold no password"),
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
        with pytest.raises(RunError, match=r"can't be reached.*Is the server running.*Nothing was asked"):
            server_run(SMALL, Endpoint(url, retries=0))


def test_a_web_page_is_no_endpoint(served):
    with pytest.raises(RunError, match=r"404.*Nothing was asked"):
        server_run(SMALL, Endpoint(served.url.replace("/v1", "/other"), retries=0))


def test_a_wrong_key_is_told_at_once_and_a_right_one_works(pair, monkeypatch):
    with OpenAIEndpoint(pair, key="right") as locked:
        settings = replace(SMALL, server=locked.url, methods=("greedy",))
        began = time.monotonic()
        with pytest.raises(RunError, match="wants a key, and OPENAI_API_KEY is not set"):
            server_run(settings)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(RunError, match="refuses the key in OPENAI_API_KEY"):
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
        talk=lambda: [
            {"role": "user", "content": [{"type": "image", "url": item.pictures()[0]}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": item.prompt},
        ],
    )
    served.seen = []
    ((plain, guarded),) = asker.ask(task, [words, turns], [("agla", 0)])
    assert (plain.failed, guarded.failed) == (None, None)
    bodies = {len(r.body["messages"]): r.body["messages"] for r in served.seen}
    assert [turn["role"] for turn in bodies[3]] == ["user", "assistant", "user"]
    assert bodies[3][2]["content"] == [{"type": "text", "text": item.prompt}]
    assert bodies[1] == [{"role": "user", "content": [{"type": "text", "text": item.prompt}]}]
    with served.faulty(guard_off), pytest.raises(RunError, match="no guard ran"):
        asker.ask(task, [turns], [("agla", 0)])


def without_proof(_: Request, reply: Reply) -> Reply:
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
        asker.ask(task, task.items[:1], [("agla", 0)])


def one(place: int, fault: Any) -> Any:
    return lambda request, reply: fault(request, reply) if request.number == place else reply


def choice(**changes: Any) -> Any:
    def fault(_: Request, reply: Reply) -> Reply:
        return replace(reply, body=reply.body | {"choices": [reply.body["choices"][0] | changes]})

    return fault


def guard_off(_: Request, reply: Reply) -> Reply:
    return replace(reply, headers={"X-AGLA": "off"}, body=reply.body | {"lvlm_guard": None})


KEPT = ".*same command again, and it goes on"
STOPS: list[tuple[str, Any, str]] = [
    ("busy for ever", status(503), "answered 503, tried 6 times.*3 requests in a row" + KEPT),
    ("rate limit for ever", status(429), "answered 429, tried 6 times.*3 requests in a row" + KEPT),
    ("key withdrawn", status(401), "wants a key" + KEPT),
    ("model gone", status(404), "answered 404: " + KEPT),
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
        _ = [asker.ask(task, [item], [("agla", 0)]) for item in task.items]
    assert len(served.seen) <= 3 * 6


@pytest.mark.parametrize("fault", [status(500), without_proof], ids=["answers 500", "loses its guard"])
def test_a_run_that_a_server_ends_keeps_its_answers_and_goes_on_to_the_same_end(served, unbroken, tmp_path, fault):
    with served.faulty(after(12, fault)), pytest.raises(RunError):
        go(served, tmp_path)
    kept = sum(len(path.read_text().splitlines()) for path in (tmp_path / "answers").glob("*.jsonl"))
    assert kept >= 8
    assert not (tmp_path / "run.json").exists()
    served.seen = []
    assert go(served, tmp_path).run["status"] == "complete"
    assert answers(tmp_path) == unbroken
    assert len(served.seen) == 3 + 2 * len(unbroken) - kept, "what was kept is not asked again"


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_fails_for_a_while_is_asked_again(asked, unbroken, code):
    served, task, asker = asked
    with served.faulty(lambda r, reply: reply if r.number % 3 == 0 else status(code)(r, reply)):
        (said,) = asker.ask(task, task.items[:4], [("agla", 0)])
    assert [one.text for one in said] == [s["answers"]["agla"][0] for s in unbroken[:4]]
    assert not any(one.failed for one in said)


def test_retry_after_is_heeded(served):
    with served.faulty(lambda r, reply: status(429, {"Retry-After": "0.7"})() if r.number == 0 else reply):
        began = time.monotonic()
        server_run(replace(SMALL, server=served.url, methods=("greedy",)))
        assert 0.7 <= time.monotonic() - began < 5


def test_a_server_that_hangs_is_told_and_not_waited_for_for_ever(served):
    settings = replace(SMALL, methods=("greedy",), server=served.url)
    (task,) = tasks_of(settings)
    _, asker, _ = server_run(settings, Endpoint(served.url, timeout=2.0, retries=0))
    with (
        served.faulty(lambda _, reply: replace(reply, wait=3.0)),
        pytest.raises(RunError, match=r"did not answer within 2 s \(tried once\)" + KEPT),
    ):
        asker.ask(task, task.items[:1], [("greedy", 0)])


FAILED: list[tuple[str, Any, str]] = [
    ("refused", status(400), "answered 400: .*out of order"),
    ("too large", status(413), "answered 413: .*out of order"),
    ("one page", page, "content type text/html"),
    ("filtered", choice(finish_reason="content_filter"), "ended the answer with 'content_filter'"),
]


@pytest.mark.parametrize(("fault", "told"), [row[1:] for row in FAILED], ids=[row[0] for row in FAILED])
def test_one_request_that_fails_is_a_failed_answer_and_no_text(asked, fault, told):
    served, task, asker = asked
    with served.faulty(one(1, fault)):
        said = [asker.ask(task, [item], [("agla", 0)])[0][0] for item in task.items[:3]]
    assert [each.failed is not None for each in said] == [False, True, False]
    assert said[1].text == ""
    assert re.search(told, said[1].failed)


VOIDS: list[tuple[str, Any, str]] = [
    ("refused", status(400), "1 of 12 answers failed .*answered 400: .*out of order"),
    ("empty", choice(message={"role": "assistant", "content": ""}), "1 of 12 answers are empty"),
    ("null", choice(message={"role": "assistant", "content": None}), "1 of 12 answers are empty"),
    ("cut", choice(finish_reason="length"), "1 of 12 answers are cut at the limit of 64 tokens"),
]


@pytest.mark.parametrize(("fault", "told"), [row[1:] for row in VOIDS], ids=[row[0] for row in VOIDS])
def test_one_answer_that_is_none_makes_the_run_void(served, unbroken, tmp_path, fault, told):
    with served.faulty(one(9, fault)):
        done = go(served, tmp_path)
    assert done.run["status"] == "void"
    (sentence,) = done.run["void"]
    assert re.search(told, sentence)
    if "failed" in told:
        assert not done.run["rows"]
        assert go(served, tmp_path).run["status"] == "complete", "what failed is asked again"
        assert answers(tmp_path) == unbroken


def test_a_server_that_tells_neither_usage_nor_why_an_answer_ended_is_flagged(served):
    def bare(_: Request, reply: Reply) -> Reply:
        body = reply.body | {"choices": [reply.body["choices"][0] | {"finish_reason": None}]}
        return replace(reply, body={k: v for k, v in body.items() if k != "usage"})

    settings = replace(SMALL, methods=("greedy",), server=served.url)
    (task,) = tasks_of(settings)
    with served.faulty(bare):
        _, asker, flags = server_run(settings)
        ((said, *_),) = asker.ask(task, task.items[:2], [("greedy", 0)])
        ((short, *_),) = asker.ask(replace(task, max_new_tokens=1), task.items[:1], [("greedy", 0)])
    assert any("tokens are counted in words" in flag for flag in flags)
    assert any("does not say why an answer ended" in flag for flag in flags)
    assert (said.tokens, said.ended, short.ended) == (1, True, False)
