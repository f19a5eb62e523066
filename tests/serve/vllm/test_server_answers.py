"""The server's answers, through the official client, against `lvlm_guard`'s own generate(): token for token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("vllm")

from served import Server, answer_of, body, scenes, turn

from lvlm_guard.embedded import world

ASKED: list[tuple[str, dict[str, float]]] = [
    ("embedded-agla", {}),
    ("embedded-vote", {}),
    ("embedded", {}),
    ("embedded-agla", {"alpha": 0.5, "beta": 0.1}),
    ("embedded-vote", {"lam": 3.0, "beta": 0.02}),
    ("embedded-agla", {"alpha": 4.0, "beta": 0.05}),
    ("embedded-vote", {"lam": 0.3}),
]
CASES = 64


def sent(name: str, knobs: dict[str, float]) -> dict[str, float]:
    guard = name.partition("-")[2]
    return {f"{guard}_{knob}": value for knob, value in knobs.items()}


def case(i: int) -> tuple[str, dict[str, float], list[dict[str, Any]]]:
    """Captions and questions about objects that a scene's props suggest, in turn over names and knobs."""
    name, knobs = ASKED[i % len(ASKED)]
    scene = i * 3 % 40
    objects, props = scenes().visible(scene)
    suggested = world.assumed(objects, props) or objects or [0]
    text = world.CAPTION_PROMPT if i % 3 else world.question(world.CLASSES[suggested[i % len(suggested)]])
    return name, knobs, [turn(text, scene)]


async def _all(server: Server, bodies: list[Any], at_once: int) -> list[Any]:
    turns = asyncio.Semaphore(at_once)

    async def one(client: Any, fields: Any) -> Any:
        async with turns:
            return answer_of(await client.chat.completions.with_raw_response.create(**fields))

    async with server.async_client() as client:
        return await asyncio.gather(*(one(client, fields) for fields in bodies))


def test_64_requests_32_at_once_guarded_and_plain_with_different_knobs_are_each_answered_as_by_transformers(
    server, reference
):
    cases = [case(i) for i in range(CASES)]
    said = asyncio.run(_all(server, [body(n, talk, sent(n, knobs)) for n, knobs, talk in cases], 32))
    wrong = overruled = 0
    for (name, knobs, talk), answer in zip(cases, said, strict=True):
        expected = reference.greedy(name, talk, **knobs)
        assert answer.prompt == expected.prompt
        wrong += answer.tokens != expected.tokens
        assert answer.text.strip() == expected.text
        overruled += answer.tokens != reference.greedy("embedded", talk).tokens
        guard = name.partition("-")[2] or None
        assert answer.guard["method"] == guard
        assert {knob: answer.guard["knobs"][knob] for knob in knobs} == knobs
    assert wrong == 0
    assert overruled > 12


def test_the_same_again_from_the_caches_and_in_another_order_is_the_same(server, reference):
    cases = [case(i) for i in range(CASES)][::-2]
    said = asyncio.run(_all(server, [body(n, talk, sent(n, knobs)) for n, knobs, talk in cases], 32))
    assert [a.tokens for a in said] == [reference.greedy(n, talk, **knobs).tokens for n, knobs, talk in cases]


@pytest.mark.parametrize("name", ["embedded", "embedded-agla", "embedded-vote"])
def test_a_streamed_answer_is_the_same_and_says_which_guard_ran(server, name):
    talk = [turn(world.CAPTION_PROMPT, 3)]
    whole = server.ask(name, talk)
    fields = body(name, talk, stream=True, stream_options={"include_usage": True})
    raw = server.client.chat.completions.with_raw_response.create(**fields)
    chunks = list(raw.parse())
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.text
    assert [token for choice in choices for token in getattr(choice, "token_ids", None) or ()] == whole.tokens
    assert sum(bool(choice.delta.content) for choice in choices) > 5, "it came in one piece"
    assert choices[-1].finish_reason == whole.finish == "stop"
    assert {chunk.model for chunk in chunks} == {name}
    marked = [chunk.lvlm_guard for chunk in chunks if getattr(chunk, "lvlm_guard", None)]
    assert all(said == whole.guard for said in marked)
    assert [bool(getattr(chunk, "lvlm_guard", None)) for chunk in (chunks[0], chunks[-2], chunks[-1])] == [True] * 3
    assert chunks[-1].usage == whole.whole.usage
    assert {n: v for n, v in raw.headers.items() if n in ("x-agla", "x-vote")} == whole.headers


def test_header_and_body_say_the_guard_its_knobs_and_the_matcher(server):
    talk = [turn(world.CAPTION_PROMPT, 5)]
    plain = server.ask("embedded", talk)
    assert plain.headers == {"x-agla": "off", "x-vote": "off"}
    assert plain.guard == {"method": None, "knobs": {}}
    assert plain.whole.model == "embedded"
    agla = server.ask("embedded-agla", talk, {"agla_alpha": 1.25})
    version = agla.guard["mask"]
    assert agla.headers == {"x-agla": f"on; alpha=1.25; beta=0.5; mask={version}"}
    assert agla.guard == {"method": "agla", "knobs": {"alpha": 1.25, "beta": 0.5}, "mask": version}
    assert agla.whole.model == "embedded-agla"
    vote = server.ask("embedded-vote", talk, {"vote_lam": 2})
    assert vote.headers == {"x-vote": f"on; lam=2; beta=0.1; scores={version}; claims=objects"}
    assert vote.guard == {"method": "vote", "knobs": {"lam": 2.0, "beta": 0.1}, "scores": version, "claims": "objects"}
    assert "blip@" in version


def test_with_no_knobs_at_work_a_guard_says_what_the_plain_model_says(server):
    for scene in (2, 9):
        talk = [turn(world.CAPTION_PROMPT, scene)]
        plain = server.ask("embedded", talk).tokens
        assert server.ask("embedded-agla", talk, {"agla_alpha": 0}).tokens == plain
        assert server.ask("embedded-vote", talk, {"vote_lam": 0}).tokens == plain


@pytest.mark.parametrize("name", ["embedded-agla", "embedded-vote"])
def test_of_several_turns_the_last_user_s_text_is_matched_and_the_mask_follows_it(server, reference, name):
    """The picture came in the first turn; each follow-up question makes another mask and other scores."""
    differs = 0
    for scene in (1, 4, 7, 11):
        objects, props = scenes().visible(scene)
        said = server.ask(name, [turn(world.CAPTION_PROMPT, scene)]).text
        first = [turn(world.CAPTION_PROMPT, scene), {"role": "assistant", "content": said.strip()}]
        for noun in {*(world.assumed(objects, props) or [0])[:2], objects[0]}:
            question = world.question(world.CLASSES[noun])
            talk = [*first, {"role": "user", "content": question}]
            expected = reference.greedy(name, talk)
            assert expected.asked == [question]
            answer = server.ask(name, talk, logprobs=True)
            assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
            got = [entry.logprob for entry in answer.whole.choices[0].logprobs.content]
            chosen = expected.logprobs()[range(len(got)), expected.tokens].tolist()
            assert got == pytest.approx(chosen, abs=1e-3)
            differs += expected.tokens != reference.greedy("embedded", talk).tokens
    assert differs or name == "embedded-vote"


@pytest.mark.parametrize("guard", ["agla", "vote"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_alone_under_a_guarded_name_is_answered_plainly_and_says_so(server, reference, guard, stream):
    talk = [{"role": "user", "content": world.CAPTION_PROMPT}]
    expected = reference.greedy("embedded", talk)
    why = f"the prompt has no picture, so there is nothing for {guard} to guard"
    fields = body(f"embedded-{guard}", talk, stream=stream)
    raw = server.client.chat.completions.with_raw_response.create(**fields)
    assert {n: v for n, v in raw.headers.items() if n in ("x-agla", "x-vote")} == {"x-agla": "off", "x-vote": "off"}
    if stream:
        chunks = list(raw.parse())
        choices = [choice for chunk in chunks for choice in chunk.choices]
        tokens = [token for choice in choices for token in getattr(choice, "token_ids", None) or ()]
        said = chunks[0].lvlm_guard
    else:
        answer = answer_of(raw)
        tokens, said = answer.tokens, answer.guard
    assert tokens == expected.tokens
    assert said == {"method": None, "knobs": {}, "why": why}


def test_a_system_turn_and_a_question_for_one_word_are_no_part_of_the_matching_text(server, reference):
    question = world.question("dog")
    talk = [
        {"role": "system", "content": "the image shows"},
        turn(f"{question}\nAnswer the question using a single word or phrase.", 6),
    ]
    for name in ("embedded-agla", "embedded-vote"):
        expected = reference.greedy(name, talk)
        assert expected.asked == [question]
        assert server.ask(name, talk).tokens == expected.tokens
