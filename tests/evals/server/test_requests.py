"""What a server is asked: models by their names, knobs, seeds, temperatures, turns with and without pictures."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO

import pytest
from openai import OpenAI
from openai_endpoint import OpenAIEndpoint
from server_faults import guard_off
from server_runs import SMALL, ask_some

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.infer.server.asker import document_seed
from lvlm_guard.evals.tasks import tasks_of


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
