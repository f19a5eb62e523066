"""Two pictures in a prompt: each with its own mask, whatever the caches of vLLM hold already.

vLLM processes only the pictures that its processor cache lacks, with the arguments of the whole request, so that
masks given by position would meet other pictures. What is expected comes from generate() in this process.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import httpx
from maskd_service import metric
from served import PICTURES, turn

from lvlm_guard.embedded import world

KNOBS = {"alpha": 2.0, "beta": 0.05}
DOG, PERSON = world.question("dog"), world.question("person")


def check(server, reference, name, talk):
    """See that server and generate() say the same, with the same log-probabilities; return how far plain's are."""
    guard = name.partition("-")[2]
    knobs = KNOBS if guard == "agla" else {}
    expected = reference.greedy(name, talk, **knobs)
    answer = server.ask(name, talk, {f"{guard}_{knob}": value for knob, value in knobs.items()}, logprobs=True)
    assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens)
    got = [entry.logprob for entry in answer.whole.choices[0].logprobs.content]
    rows = range(len(got))
    assert got == pytest.approx(expected.logprobs()[rows, expected.tokens].tolist(), abs=1e-3)
    plain = reference.forced("embedded", talk, expected.tokens).logprobs()[rows, expected.tokens]
    return float((plain - expected.logprobs()[rows, expected.tokens]).abs().max())


def hits(server):
    return metric(server.url, "vllm:mm_cache_hits_total")


@pytest.mark.parametrize("text", [world.CAPTION_PROMPT, DOG])
def test_both_pictures_new_one_of_them_known_both_known_and_the_order_turned(server, reference, text):
    a, b, c, d = (40, 41, 42, 43) if text == DOG else (44, 45, 46, 47)
    before = hits(server)
    apart = [check(server, reference, "embedded-agla", [turn(text, a, b)])]
    assert hits(server) == before, "these pictures were to be new"
    for pictures, known in (((b, a), 2), ((c, a), 1), ((a, d), 1), ((d, c), 2), ((a, b), 2)):
        before = hits(server)
        apart.append(check(server, reference, "embedded-agla", [turn(text, *pictures)]))
        assert hits(server) == before + known, "the processor cache held others than was meant"
    assert max(apart) > 0.1


def test_a_picture_known_plainly_or_with_another_question_s_mask_is_no_masked_one(server, reference):
    a, b = 48, 49
    check(server, reference, "embedded", [turn(DOG, a, b)])
    check(server, reference, "embedded-agla", [turn(PERSON, a)])
    check(server, reference, "embedded-agla", [turn(DOG, b, a)])
    check(server, reference, "embedded-agla", [turn(PERSON, b, a)])
    check(server, reference, "embedded", [turn(PERSON, b, a)])


def test_the_same_picture_twice(server, reference):
    for pictures in ((50, 50), (50,), (50, 51), (51, 51)):
        check(server, reference, "embedded-agla", [turn(world.CAPTION_PROMPT, *pictures)])


def test_pictures_of_two_turns_are_both_masked_for_the_last_question(server, reference):
    first = [turn(world.CAPTION_PROMPT, 52), {"role": "assistant", "content": "the image shows a dog ."}]
    check(server, reference, "embedded-agla", first[:1])
    talk = [*first, turn(PERSON, 53)]
    assert reference.greedy("embedded-agla", talk, **KNOBS).asked == [PERSON, PERSON]
    check(server, reference, "embedded-agla", talk)
    check(server, reference, "embedded-agla", [*first, turn(DOG, 53)])


def test_vote_counts_what_either_picture_holds(server, reference):
    for pictures in ((40, 41), (41, 40), (54, 55), (55, 55)):
        for text in (world.CAPTION_PROMPT, DOG):
            check(server, reference, "embedded-vote", [turn(text, *pictures)])


def test_more_pictures_than_the_server_takes_are_refused(server):
    url = f"{server.url}/v1/chat/completions"
    for name in ("embedded", "embedded-agla", "embedded-vote"):
        sent = {"model": name, "messages": [turn(DOG, *range(PICTURES + 1))]}
        said = httpx.post(url, json=sent, headers={"Authorization": f"Bearer {server.client.api_key}"}, trust_env=False)
        assert said.status_code == 400
        assert said.json()["error"]["message"] == "The request has 3 pictures; 2 at most are taken."
