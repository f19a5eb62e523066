"""What a client may ask of the sampler under a guarded name: all of it acts on the guarded distribution.

The log-probabilities of each drawn token are compared with those of generate() for the same answer, which fails for
a distribution that is not the guarded one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

pytest.importorskip("vllm")

from served import body, scenes, turn

from lvlm_guard.embedded import world

NAMES = ("embedded", "embedded-agla", "embedded-vote")
TALK = [turn(world.CAPTION_PROMPT, 12)]
WIDE = {"embedded": {}, "embedded-agla": {"beta": 0.02}, "embedded-vote": {"beta": 0.02}}
"""Knobs that leave many tokens to draw from."""


def sent(name):
    return {f"{name.partition('-')[2]}_{knob}": value for knob, value in WIDE[name].items()}


def ask(server, name, **fields):
    return server.ask(name, TALK, sent(name), **fields)


def chosen(choice):
    return [entry.logprob for entry in choice.logprobs.content]


@pytest.mark.parametrize("name", NAMES)
def test_several_choices_with_a_seed_differ_repeat_and_are_drawn_from_the_guarded_distribution(server, reference, name):
    fields = {"n": 6, "seed": 7, "temperature": 1.0, "logprobs": True}
    whole = ask(server, name, **fields).whole
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert len({tuple(choice.token_ids) for choice in whole.choices}) > 2
    for choice in whole.choices:
        drawn = choice.token_ids
        expected = reference.forced(name, TALK, drawn, **WIDE[name]).logprobs()[range(len(drawn)), drawn]
        assert chosen(choice) == pytest.approx(expected.tolist(), abs=1e-3)
    again = ask(server, name, **fields).whole
    assert [choice.token_ids for choice in again.choices] == [choice.token_ids for choice in whole.choices]
    other = ask(server, name, **(fields | {"seed": 8})).whole
    assert [choice.token_ids for choice in other.choices] != [choice.token_ids for choice in whole.choices]
    assert whole.usage.completion_tokens == sum(len(choice.token_ids) for choice in whole.choices)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_answer_alone_and_among_others(server, name):
    alone = [ask(server, name, seed=seed, temperature=1.0).tokens for seed in range(6)]
    with ThreadPoolExecutor(18) as pool:
        others = [pool.submit(ask, server, other, temperature=1.0) for other in NAMES for _ in range(4)]
        among = [pool.submit(ask, server, name, seed=seed, temperature=1.0) for seed in range(6)]
        assert [one.result().tokens for one in among] == alone
        assert all(one.result().tokens for one in others)
    assert len(set(map(tuple, alone))) > 1


@pytest.mark.parametrize("temperature", [0, 0.6, 1.7])
@pytest.mark.parametrize("name", NAMES)
def test_top_logprobs_are_those_of_the_guarded_distribution(server, reference, name, temperature):
    """vLLM reports them as they are sampled from, temperature included; a greedy answer's at temperature 1."""
    fields = {"temperature": temperature, "seed": 3, "logprobs": True, "top_logprobs": 8}
    answer = ask(server, name, **fields)
    logprobs = reference.forced(name, TALK, answer.tokens, **WIDE[name]).logprobs(temperature or 1.0)
    choices = 0
    entries = answer.whole.choices[0].logprobs.content
    for row, entry, drawn in zip(logprobs, entries, answer.tokens, strict=True):
        best = row.topk(8).indices.tolist()
        listed = [drawn, *(token for token in best if token != drawn)][:8]  # the drawn token first, then the likeliest
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(row[listed].tolist(), abs=2e-3)
        likely = [reference.processor.tokenizer.decode([token]) for token in listed if row[token] > -20]
        assert sorted(one.token for one in entry.top_logprobs if one.logprob > -20) == sorted(likely)
        choices += len(likely) > 1
    assert choices > 2
    plain = reference.forced("embedded", TALK, answer.tokens).logprobs(temperature or 1.0)
    assert name == "embedded" or (plain - logprobs).exp().sub(1).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_stop_strings_end_an_answer_before_or_behind_them(server, name):
    text = ask(server, name).text
    cut = ask(server, name, stop=[",", "never said"])
    assert cut.text == text[: text.index(",")]
    assert (cut.finish, cut.whole.choices[0].stop_reason) == ("stop", ",")
    kept = ask(server, name, stop=",", extra_body={"include_stop_str_in_output": True})
    assert kept.text == text[: text.index(",") + 1]
    assert ask(server, name, stop="shows a").text == " the image "


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_of_tokens_cuts_an_answer_and_usage_counts_it(server, reference, name):
    whole = ask(server, name)
    assert whole.finish == "stop"
    for field in ("max_tokens", "max_completion_tokens"):
        cut = server.ask(name, TALK, sent(name), **({"max_tokens": openai.omit} | {field: 3}))
        assert cut.tokens == whole.tokens[:3]
        assert cut.finish == "length"
        usage = cut.whole.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(cut.prompt), 3)
        assert usage.total_tokens == len(cut.prompt) + 3
    assert len(whole.prompt) == len(reference.greedy(name, TALK, **WIDE[name]).prompt)
    longest = ask(server, name, extra_body={"ignore_eos": True}, max_tokens=256 - len(whole.prompt))
    assert longest.whole.usage.total_tokens == 256


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_tells_usage_when_it_is_asked_to(server, name):
    for asked in (True, False):
        fields = body(name, TALK, sent(name), stream=True, n=2, seed=1, temperature=1.0)
        options = {"stream_options": {"include_usage": True}} if asked else {}
        chunks = list(server.client.chat.completions.create(**fields, **options))
        told = [chunk.usage for chunk in chunks if chunk.usage]
        assert len(told) == asked
        if asked:
            written = [len(getattr(choice, "token_ids", None) or ()) for chunk in chunks for choice in chunk.choices]
            assert told[0].completion_tokens == sum(written)
        assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize("name", NAMES)
def test_top_k_of_one_is_greedy_and_top_p_draws_from_the_head_alone(server, reference, name):
    greedy = reference.greedy(name, TALK, **WIDE[name]).tokens
    assert ask(server, name, temperature=1.0, extra_body={"top_k": 1}).tokens == greedy
    for seed in range(4):
        drawn = ask(server, name, temperature=1.0, seed=seed, top_p=0.5).tokens
        rows = reference.forced(name, TALK, drawn, **WIDE[name]).logprobs().exp()
        for row, token in zip(rows, drawn, strict=True):
            assert float(row[row > row[token]].sum()) < 0.5 + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_structured_answer_is_as_asked_and_chosen_by_the_guard(server, reference, name):
    differs = 0
    for scene in range(24):
        for noun in world.assumed(*scenes().visible(scene))[:2]:
            talk = [turn(world.question(world.CLASSES[noun]), scene)]
            expected = reference.greedy(name, talk, **WIDE[name])
            said = server.ask(name, talk, sent(name), extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
            assert said.text.strip() == expected.text
            differs += expected.text != reference.greedy("embedded", talk).text
    caption = ask(server, name, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert caption.text.strip() in ("yes", "no")
    assert caption.guard["method"] == (name.partition("-")[2] or None)
    assert (differs > 0) == (name != "embedded")


@pytest.mark.parametrize("name", NAMES)
def test_allowed_and_forbidden_tokens_and_a_bias_are_heeded(server, reference, name):
    greedy = reference.greedy(name, TALK, **WIDE[name])
    yes, no, dog = (reference.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "dog"))
    answer = ask(server, name, max_tokens=2, extra_body={"allowed_token_ids": [yes, no]})
    assert set(answer.tokens) <= {yes, no}
    assert ask(server, name, max_tokens=1, logit_bias={str(dog): 100}).tokens == [dog]
    first = reference.processor.tokenizer.decode([greedy.tokens[4]])
    assert first not in ask(server, name, extra_body={"bad_words": [first]}).text.split()
    assert len(ask(server, name, extra_body={"min_tokens": 30}).tokens) >= 30


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "fields",
    [
        {"extra_body": {"allowed_token_ids": [7], "bad_words": ["the image shows", "image"]}, "max_tokens": 3},
        {"response_format": {"type": "json_object"}},  # the tokenizer has no brace
        {"extra_body": {"structured_outputs": {"regex": "[0-9]+"}}},
        {"extra_body": {"structured_outputs": {"json": {"type": "integer"}}}, "logprobs": True},
    ],
)
def test_a_request_that_forbids_itself_everything_stops_nobody_else(server, reference, name, fields):
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(ask, server, name, **fields) for _ in range(3)]
        good = [pool.submit(ask, server, other) for other in NAMES]
        for other, one in zip(NAMES, good, strict=True):
            assert one.result().tokens == reference.greedy(other, TALK, **WIDE[other]).tokens
        for one in bad:
            error = one.exception()
            assert error is None or isinstance(error, openai.InternalServerError | openai.BadRequestError)
    assert ask(server, name).tokens == reference.greedy(name, TALK, **WIDE[name]).tokens
