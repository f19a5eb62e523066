"""`vote` on tiny random models whose "words" are single bytes, against its formula written out."""

import math
import threading
from dataclasses import replace

import pytest
import recompute
import tiny
import torch
from matchers import Brightness
from transformers import TextStreamer
from vote_formula import NAMES, QUESTIONS, STEPS, Counting, follows_the_formula, inputs_of, vote

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import KnobError, MissingViewError, TextError, UnsupportedCallError
from lvlm_guard.matching import Matcher
from lvlm_guard.matching.claims import Choice
from lvlm_guard.matching.vocabulary import plural
from lvlm_guard.matching.voting import odds_of


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request):
    model, processor = tiny.make(request.param, scale=3.0)
    yield guard(model, processor, vote())
    unguard(model)
    unguard(processor)


@pytest.fixture(scope="module")
def llava():
    model, processor = tiny.make("llava")
    yield guard(model, processor, vote())
    unguard(model)
    unguard(processor)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_tokens_equal_the_formula_recomputed_from_scratch(pair, sample):
    follows_the_formula(pair, sample, lam=1.0, beta=0.02)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize(("lam", "beta"), [(3.0, 0.1), (0.5, 0.0)])
def test_other_weights_and_cuts_follow_the_formula_too(llava, sample, lam, beta):
    follows_the_formula(llava, sample, lam, beta)


def test_lambda_zero_is_plain_when_greedy_and_the_constraint_alone_when_sampled(pair):
    model, _ = pair
    inputs = inputs_of(pair)
    greedy = {"max_new_tokens": STEPS, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **greedy, guard=vote(lam=0.0)), model.generate(**inputs, **greedy, guard=False)
    )
    sampled = []
    for chosen in (vote(lam=0.0), methods.APC(beta=0.02)):
        torch.manual_seed(9)
        sampled.append(model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, guard=chosen))
    assert torch.equal(*sampled)


def test_a_row_of_a_batch_equals_the_same_request_alone(pair):
    model, processor = pair
    together = model.generate(**inputs_of(pair), max_new_tokens=STEPS, do_sample=False)
    for row, (question, seed) in enumerate(zip(QUESTIONS, (11, 12), strict=True)):
        alone = model.generate(**inputs_of(pair, [question], [seed]), max_new_tokens=STEPS, do_sample=False)
        answer = processor.tokenizer.decode(alone[0, -STEPS:], skip_special_tokens=True)
        assert processor.tokenizer.decode(together[row], skip_special_tokens=True).endswith(answer)


@pytest.mark.parametrize(
    "mode",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=["beams", "beams returning two", "two samples"],
)
def test_votes_do_not_depend_on_the_cache_under_beams_and_sampling(llava, mode):
    model, _ = llava
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        runs.append(model.generate(**inputs_of(llava), max_new_tokens=STEPS, use_cache=use_cache, **mode))
    assert torch.equal(*runs)


def test_prompt_lookup_and_streaming_give_the_greedy_tokens(llava, capsys):
    model, processor = llava
    inputs = inputs_of(llava, QUESTIONS[:1])
    expected = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    looked_up = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, expected)
    streamed = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, streamer=TextStreamer(processor.tokenizer, skip_prompt=True)
    )
    assert torch.equal(streamed, expected)
    assert processor.tokenizer.decode(expected[0, -STEPS:]).strip() in capsys.readouterr().out


@pytest.mark.parametrize("execution", ["auto", "lazy", "batched"])
def test_there_is_no_second_branch_however_it_is_run(llava, execution):
    model, _ = llava
    out = model.generate(
        **inputs_of(llava),
        max_new_tokens=STEPS,
        do_sample=False,
        guard_execution=execution,
        return_dict_in_generate=True,
    )
    assert out.guard.execution == "single"
    assert (out.guard.local_forwards, out.guard.local_tokens, out.guard.masks) == (0, 0, 0)


@pytest.mark.parametrize("prefetch", [False, True])
def test_each_claim_about_a_picture_is_scored_once(llava, prefetch):
    model, _ = llava
    chosen = vote(prefetch=prefetch)
    out = model.generate(
        **inputs_of(llava), max_new_tokens=30, do_sample=False, guard=chosen, return_dict_in_generate=True
    )
    asked = chosen.matcher.asked
    assert out.guard.extra["claims"] > 0
    assert asked
    assert len(asked) == len(set(asked))
    if prefetch:
        assert len(asked) % len(NAMES) == 0
    plain = model.generate(**inputs_of(llava), max_new_tokens=30, do_sample=False, guard=vote())
    assert torch.equal(out.sequences, plain)


def test_the_trace_names_the_claim_of_each_token_that_had_one(llava):
    model, processor = llava
    out = model.generate(
        **inputs_of(llava, QUESTIONS[:1]), max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True
    )
    steps = out.guard.steps[0]
    told = [step for step in steps if "claims" in step.extra]
    assert told
    for step in told:
        assert not step.decided
        for token, claim in step.extra["claims"].items():
            assert claim.startswith("a ")
            assert processor.tokenizer.decode([token]).lower() in claim[2:] + plural(claim[2:])
    assert out.guard.extra["claims"] == sum(len(step.extra["claims"]) for step in told)


def test_a_yes_no_question_is_the_claim_of_the_tokens_that_start_yes(llava):
    model, processor = llava
    chosen = vote(beta=0.0)
    out = model.generate(
        **inputs_of(llava, ["Is there a dog?"]),
        max_new_tokens=1,
        do_sample=False,
        guard=chosen,
        return_dict_in_generate=True,
    )
    claims = out.guard.steps[0][0].extra["claims"]
    assert sorted(processor.tokenizer.decode([token]) for token in claims) == ["Y", "y"]
    assert set(claims.values()) == {"Is there a dog?"}
    assert len(chosen.matcher.asked) == 1


def test_a_given_claim_stands_for_yes_whatever_the_question(llava):
    model, _ = llava
    chosen = vote(beta=0.0, claim="a cow is in view")
    model.generate(**inputs_of(llava, ["Hmm, well."]), max_new_tokens=1, do_sample=False, guard=chosen)
    assert {claim for _, claim in chosen.matcher.asked} == {"a cow is in view"}


def test_threads_with_different_knobs_do_not_mix(llava):
    model, _ = llava
    lambdas = [0.0, 1.0, 4.0]

    def run(lam):
        return model.generate(**inputs_of(llava), max_new_tokens=STEPS, do_sample=False, guard=vote(lam=lam))

    expected, got = [run(lam) for lam in lambdas], {}
    threads = [threading.Thread(target=lambda lam=lam: got.update({lam: run(lam)})) for lam in lambdas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[lam], tokens) for lam, tokens in zip(lambdas, expected, strict=True))


def test_with_several_pictures_the_best_supported_one_counts(llava):
    model, processor = llava
    chosen = vote(beta=0.0)
    pictures = [tiny.picture(11, 60, 40), tiny.picture(12, 60, 40)]
    inputs = processor(images=[pictures], text=[tiny.prompt(processor, "Is it?", 2)], return_tensors="pt")
    inputs = inputs.to(torch.float64)
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, guard=chosen, return_dict_in_generate=True)
    p = max(float(Counting().support(picture, ["Is it?"])) for picture in pictures)
    l = recompute.logits_of(model, {k: v for k, v in inputs.items() if k != "guard_views"})[0]  # noqa: E741
    assert "y" in [processor.tokenizer.decode([token]) for token in out.guard.steps[0][0].extra["claims"]]
    assembled = l.clone()
    for token in out.guard.steps[0][0].extra["claims"]:
        assembled[token] += math.log(p / (1 - p))
    told = out.guard.steps[0][0].log_prob["assembled"]
    chosen_token = out.guard.steps[0][0].token
    assert told == pytest.approx(float(assembled.log_softmax(-1)[chosen_token]), abs=1e-6)


def test_requests_without_a_picture_stay_plain(llava):
    model, processor = llava
    text = ["USER: What is there? ASSISTANT:", tiny.prompt(processor, QUESTIONS[0])]
    inputs = processor(images=[tiny.picture(11)], text=text, padding=True, return_tensors="pt").to(torch.float64)
    guarded = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    plain = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, guard=False)
    assert torch.equal(guarded[0], plain[0])


def test_a_picture_without_a_question_or_from_a_plain_processor_is_an_error(llava):
    model, _ = llava
    with pytest.raises(TextError):
        model.generate(**inputs_of(llava, [""]), max_new_tokens=1)
    inputs = inputs_of(llava, QUESTIONS[:1])
    inputs.pop("guard_views")
    with pytest.raises(MissingViewError):
        model.generate(**inputs, max_new_tokens=1)


def test_a_matcher_that_gives_maps_only_is_refused_before_the_first_token(llava):
    class MapsOnly(Brightness):
        support = Matcher.support

    model, _ = llava
    with pytest.raises(UnsupportedCallError, match="support"):
        model.generate(**inputs_of(llava), max_new_tokens=1, guard=vote(matcher=MapsOnly()))


@pytest.mark.parametrize(
    "knobs",
    [
        {"lam": -1.0},
        {"lam": math.nan},
        {"beta": 1.5},
        {"ends": -1.0},
        {"again": 1.5},
        {"again": -0.1},
        {"again": math.nan},
        {"objects": ()},
        {"objects": "no-such-file.txt"},
        {"template": "is it there?"},
        {"template": "{name}"},
        {"template": "{object"},
    ],
    ids=str,
)
def test_a_knob_out_of_range_is_an_error(knobs):
    with pytest.raises(KnobError):
        methods.Vote(**knobs)


def test_knobs_may_be_a_list_of_objects_and_are_hashable_plain_data():
    chosen = methods.Vote(objects=["dog", "couch, sofa"])
    assert chosen.objects == ("dog", "couch, sofa")
    assert hash(chosen) == hash(methods.Vote(objects=("dog", "couch, sofa")))
    assert chosen.knobs()["objects"] == ["dog", "couch, sofa"]


@pytest.mark.parametrize("knobs", [{}, {"again": 0.02, "ends": 4.0}], ids=str)
def test_what_is_named_already_and_the_end_of_a_sentence_follow_the_formula(llava, knobs):
    follows_the_formula(llava, True, lam=1.0, beta=0.001, steps=16, **knobs)


DOG, CAT = Choice({5: frozenset({"dog"})}), Choice({5: frozenset({"dog", "cat"})})


@pytest.mark.parametrize(
    ("choice", "again", "expected"),
    [
        (DOG, 0.5, {5: ("dog", math.log(9))}),
        (replace(DOG, named=frozenset({"dog"})), 0.5, {5: ("dog", 0.0)}),
        (replace(DOG, named=frozenset({"dog"})), 0.02, {5: ("dog", -math.log(49))}),
        (replace(DOG, named=frozenset({"dog"})), 1.0, {5: ("dog", math.log(9))}),
        (replace(CAT, named=frozenset({"dog"})), 0.5, {5: ("dog", 0.0)}),  # the cat is refuted: .2
        (replace(CAT, named=frozenset({"dog"})), 0.1, {5: ("cat", -math.log(4))}),
    ],
)
def test_golden_votes(choice, again, expected):
    votes = odds_of(choice, {"dog": 0.9, "cat": 0.2}, again)
    assert {token: name for token, (name, _) in votes.items()} == {token: name for token, (name, _) in expected.items()}
    assert [odds for _, odds in votes.values()] == pytest.approx([odds for _, odds in expected.values()], abs=1e-9)
