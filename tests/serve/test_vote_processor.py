"""`vote` of the server on logits alone, against the transformers engine's answers and the formula written out."""

import json
import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.assembly import plausible
from lvlm_guard.errors import GuardError, LogitsError
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.asking import yes_no_claim
from lvlm_guard.matching.claims import FAR, finder_of
from lvlm_guard.matching.vocabulary import claim_about
from lvlm_guard.matching.voting import QUESTION
from lvlm_guard.serve.vote import ballot as reading
from lvlm_guard.serve.vote.ballot import Ballot, ballot_arguments, ballot_of, claims_of, kinds_of
from lvlm_guard.serve.vote.counting import Counting
from lvlm_guard.serve.wire import pack_scores

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = tuple(sorted({a + b for a in LETTERS for b in LETTERS[::3]}))  # random answers start many of these
TOKENIZER = tiny.tokenizer(tiny.SPECIALS, image_token="<image>")
SIZE = len(TOKENIZER)
WORD = TOKENIZER.encode("the ca", add_special_tokens=False)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server that votes on NAMES."""
    path = tmp_path / "objects.txt"
    path.write_text("\n".join(NAMES))
    monkeypatch.setenv(reading.OBJECTS, str(path))


def request_of(question, matcher, picture, **knobs):
    claims = claims_of(question)
    scores = dict(zip(claims, matcher.support(picture, claims).tolist(), strict=True))
    return ballot_arguments(methods.Vote(), question, scores) | knobs


@pytest.mark.parametrize(
    "question",
    ["Describe the picture.", "Is there a bright spot in the picture?", "Describe it. Is there a bright spot in it?"],
)
@pytest.mark.parametrize(("lam", "beta"), [(1.0, 0.02), (3.0, 0.2)])
def test_a_request_is_assembled_as_the_transformers_engine_assembles_it(served, question, lam, beta):
    model, processor = tiny.make("llava")
    model.generation_config.suppress_tokens = None
    y, s = processor.tokenizer.encode("ys", add_special_tokens=False)
    with torch.no_grad():  # this random model never wants to say yes
        model.lm_head.weight[y] = model.lm_head.weight[s]
    matcher, picture = Brightness(), tiny.picture(3)
    guard(model, processor, methods.Vote(matcher=matcher, objects=NAMES, lam=lam, beta=beta))
    inputs = processor(images=[picture], text=[tiny.prompt(processor, question)], return_tensors="pt")
    inputs = inputs.to(torch.float64)
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False, output_scores=True, return_dict_in_generate=True)
    views = {key: value for key, value in inputs.items() if key != "guard_views"}
    unguard(model)
    start = views["input_ids"].shape[1]
    answer = out.sequences[0, start:].tolist()
    everything = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    if "mm_token_type_ids" in views:
        everything["mm_token_type_ids"] = torch.nn.functional.pad(views["mm_token_type_ids"], (0, len(answer)))
    plain = model(**(views | everything)).logits[0, start - 1 : -1].float()

    ballot = ballot_of(request_of(question, matcher, picture, guard_lam=lam, guard_beta=beta))
    count = Counting(processor.tokenizer, Vocabulary.of(NAMES))
    counted = count(
        plain.clone(), dict.fromkeys(range(len(answer)), ballot), lambda rows: [answer[:row] for row in rows]
    )
    expected = torch.cat(out.scores).float()
    torch.testing.assert_close(counted, expected, rtol=1e-5, atol=2e-3)  # rejected tokens lie 1e4 lower
    kept = plausible(plain, beta)
    torch.testing.assert_close(counted[kept], expected[kept], rtol=1e-5, atol=1e-4)
    assert ((counted - plain)[kept].abs() > 0.1).any()  # someone voted


ballots = st.builds(
    Ballot,
    lam=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    beta=st.sampled_from([0.001, 0.05, 0.5, 1.0]),
    support=st.fixed_dictionaries(
        {name: st.sampled_from([0.001, 0.3, 0.5, 0.92]) for name in ("cat", "car", "dog")},
        optional={QUESTION: st.sampled_from([0.001, 0.95])},
    ),
) | st.builds(Ballot, lam=st.just(1.0), beta=st.just(0.05), support=st.just({QUESTION: 0.95}))
logits_of_rows = st.lists(st.tuples(st.integers(0, 2**32), st.none() | ballots), min_size=1, max_size=6)


def counting():
    return Counting(TOKENIZER, Vocabulary.of(("cat", "car", "dog")))


def rows_of(seeds):
    return torch.stack([torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 3 for seed in seeds])


def by_the_formula(logits, ballot):
    """What follows "the ca", letter by letter."""
    keep = (logits >= logits.max() + math.log(ballot.beta)).tolist()
    z = logits.double().clone()
    if sum(keep) > 1:
        for token, kept in enumerate(keep):
            piece = TOKENIZER.decode([token])
            if kept and ballot.objects and piece.lower() in ("t", "r"):
                p = ballot.support["cat" if piece.lower() == "t" else "car"]
                z[token] += ballot.lam * math.log(p / (1 - p))
    return torch.tensor(keep), z


@settings(deadline=None, max_examples=60)
@given(logits_of_rows)
def test_rows_are_voted_on_by_their_own_ballots_and_plain_ones_are_left_alone(drawn):
    logits = rows_of([seed for seed, _ in drawn])
    asked = []
    guarded = {row: ballot for row, (_, ballot) in enumerate(drawn) if ballot is not None}

    def prefixes(rows):
        asked.extend(rows)
        return [WORD for _ in rows]

    out = counting()(logits.clone(), guarded, prefixes)
    for row, (_, ballot) in enumerate(drawn):
        if ballot is None:
            assert torch.equal(out[row], logits[row])
            continue
        keep, z = by_the_formula(logits[row], ballot)
        torch.testing.assert_close(out[row][keep].double(), z[keep], rtol=0, atol=1e-5)
        if not keep.all():
            assert out[row][~keep].max() < out[row][keep].min() - 5e3
            order = logits[row][~keep].argsort(stable=True)
            assert (out[row][~keep][order].diff() >= 0).all()
        alone = counting()(logits[row : row + 1].clone(), {0: ballot}, lambda rows: [WORD for _ in rows])
        assert torch.equal(alone[0], out[row])
    assert set(asked) <= guarded.keys()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), ballots, st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE - 1))
def test_what_a_grammar_forbids_stays_forbidden_and_something_allowed_wins(seed, ballot, forbidden):
    logits = rows_of([seed])
    logits[0, list(forbidden)] = -math.inf
    out = counting()(logits.clone(), {0: ballot}, lambda rows: [WORD for _ in rows])
    assert torch.equal(out[0] == -math.inf, logits[0] == -math.inf)
    assert int(out[0].argmax()) not in forbidden


def test_a_row_with_nothing_allowed_does_not_stop_its_neighbours():
    ballot = Ballot(1.0, 0.5, {"cat": 0.7, "car": 0.7, "dog": 0.7})
    logits = rows_of([1, 2])
    logits[0] = -math.inf
    out = counting()(logits.clone(), {0: ballot, 1: ballot}, lambda rows: [WORD for _ in rows])
    alone = counting()(logits[1:].clone(), {0: ballot}, lambda rows: [WORD for _ in rows])
    assert torch.equal(out[0], logits[0])
    assert torch.equal(out[1], alone[0])
    assert not torch.equal(out[1], logits[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_under_a_guard_are_an_error(bad):
    ballot = Ballot(1.0, 0.5, {"cat": 0.7, "car": 0.7, "dog": 0.7})
    logits = rows_of([1, 2])
    logits[0, 7] = bad
    with pytest.raises(LogitsError, match="NaN or infinity"):
        counting()(logits.clone(), {0: ballot, 1: ballot}, lambda rows: [WORD for _ in rows])
    untouched = counting()(logits.clone(), {1: ballot}, lambda rows: [WORD for _ in rows])
    assert torch.equal(untouched[0], logits[0]) or math.isnan(bad)


def test_a_question_asks_for_itself_and_free_text_for_the_vocabulary(served):
    objects = tuple(claim_about(name, methods.Vote.template) for name in NAMES)
    assert claims_of("Is there a dog in the image? Answer yes or no.") == ("Is there a dog in the image?",)
    assert claims_of("What is there?") == objects
    assert claims_of("Describe the image in detail. Is it nice?") == ("Is it nice?", *objects)


@pytest.mark.parametrize(
    "question",
    [
        "Describe the image in detail. Is it nice?",
        f"Look. {claim_about(NAMES[0], 'is there {article} {object} in the image?')}",
    ],
)
def test_a_caption_is_never_voted_on_by_nothing_but_a_yes_no_question(served, question):
    """The review's attack: a caption under `X-VOTE: on` in which no token but "yes" was ever voted on."""
    ballot = ballot_of(ballot_arguments(methods.Vote(), question, dict.fromkeys(claims_of(question), 0.9)))
    assert ballot.support.keys() == {QUESTION, *NAMES}
    assert ballot.support[QUESTION] == pytest.approx(0.9)
    assert kinds_of(question) == "question+objects"


@settings(deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"(Is|Are|Does) [a-z ,]{1,20}[?.!]? ?[A-Za-z ]{0,12}[?.]?", fullmatch=True))
def test_the_claim_of_a_yes_no_question_is_known_for_one(question):
    claim = yes_no_claim(question)
    if claim is not None:
        ballot = ballot_of({"guard": "vote", "guard_claim": claim, "guard_scores": pack_scores([claim], [0.9])})
        assert ballot.support == {QUESTION: pytest.approx(0.9)}
        assert not ballot.objects


def test_plain_requests_and_other_guards_carry_no_ballot():
    assert ballot_of(None) is None
    assert ballot_of({}) is None
    assert ballot_of({"something": 1}) is None
    assert ballot_of({"guard": "agla", "guard_alpha": 2.0, "guard_beta": 0.5}) is None


WHOLE = [claim_about(name, methods.Vote.template) for name in Vocabulary.of(None).names]
SCORES = pack_scores(WHOLE, [0.5] * len(WHOLE))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"guard": "vote"}, "without guard_scores"),
        ({"guard": "vote", "guard_scores": "nonsense"}, "can't be read"),
        ({"guard": "vote", "guard_scores": SCORES[:-8]}, "scores"),
        ({"guard": "vote", "guard_scores": 1}, "no text"),
        ({"guard": "vote", "guard_scores": pack_scores(WHOLE[1:], [0.5] * (len(WHOLE) - 1))}, "missing"),
        ({"guard": "vote", "guard_scores": pack_scores([*WHOLE, "a"], [0.5] * (len(WHOLE) + 1))}, "foreign 'a'"),
        ({"guard": "vote", "guard_scores": pack_scores(["what is there?"], [0.5])}, "neither a yes/no question"),
        ({"guard": "vote", "guard_scores": pack_scores([], [])}, "missing"),
        ({"guard": "vote", "guard_scores": pack_scores(["is it?"], [0.5])}, "neither a yes/no question"),
        ({"guard": "vote", "guard_claim": "is it?", "guard_scores": SCORES}, "neither a yes/no question"),
        ({"guard": "vote", "guard_claim": 1, "guard_scores": SCORES}, "neither a yes/no question"),
        ({"guard": "vot", "guard_scores": SCORES}, "Did you mean 'vote'"),
        ({"guard": ["vote"], "guard_scores": SCORES}, "No guard"),
        ({"guard_scores": SCORES}, "without guard:"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_alpha": 1.0}, "'guard_alpha' is no knob"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_score": ""}, "'guard_score' is no knob"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": -1}, "lam"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": math.nan}, "guard_lam"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": 1e30}, "a number up to"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": 10**400}, "a number up to"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": "1"}, "give a number"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_lam": True}, "give a number"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_beta": 1.5}, "beta"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_beta": 0}, "too many"),
        ({"guard": "vote", "guard_scores": SCORES, "guard_beta": math.nan}, "beta"),
    ],
)
def test_a_request_that_can_not_be_voted_on_is_refused(arguments, says):
    with pytest.raises(GuardError, match=says):
        ballot_of(arguments)


def test_a_vocabulary_of_one_object_is_refused_for_its_claim_looks_like_a_question(tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text("dog")
    monkeypatch.setenv(reading.OBJECTS, str(tmp_path / "one.txt"))
    with pytest.raises(GuardError, match="2 to"):
        claims_of("What is there?")


def test_the_last_tokens_of_an_answer_tell_as_much_as_all_of_them():
    finder = finder_of(TOKENIZER, Vocabulary.of(("cat", "car", "dog")))
    answer = TOKENIZER.encode("a dog and " * 20 + "the ca", add_special_tokens=False)
    assert finder.reachable(answer, range(SIZE)) == finder.reachable(answer[-FAR:], range(SIZE)) != {}


def test_an_engine_on_another_machine_votes_on_the_words_of_its_configuration(served, monkeypatch):
    """Ray's workers have neither the environment variable nor the file that it names."""
    config = json.loads(json.dumps({reading.VOCABULARY: reading.spelled_out(reading.served_vocabulary())}))
    request = ballot_arguments(methods.Vote(), "What?", dict.fromkeys(claims_of("What?"), 0.5))
    monkeypatch.delenv(reading.OBJECTS)
    with pytest.raises(GuardError, match="foreign"):
        ballot_of(request)
    try:
        reading.take_vocabulary(config)
        assert ballot_of(request).support.keys() == set(NAMES)
    finally:
        reading.take_vocabulary({})
    assert claims_of("What?") == tuple(WHOLE)
