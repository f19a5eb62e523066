"""How overruled tokens are counted, on logits and rows alone."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from lvlm_guard.matching import Vocabulary
from lvlm_guard.serve import overruled
from lvlm_guard.serve.overruled import Overruled, drawn_of, preferred_others
from lvlm_guard.serve.vote.ballot import Ballot
from lvlm_guard.serve.vote.counting import Counting

TOKENIZER = tiny.tokenizer(tiny.SPECIALS, image_token="<image>")
SIZE = len(TOKENIZER)
WORD = TOKENIZER.encode("the ca", add_special_tokens=False)


@pytest.fixture
def counted():
    registry = CollectorRegistry()
    return registry, Overruled(registry)


def shown(registry, guard="vote"):
    names = ("lvlm_guard_tokens_total", "lvlm_guard_tokens_overruled_total")
    return tuple(registry.get_sample_value(name, {"guard": guard}) for name in names)


rows_of_a_step = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(rows_of_a_step, st.booleans()), min_size=1, max_size=8))
def test_rows_are_counted_once_and_only_where_a_token_was_drawn(steps):
    registry = CollectorRegistry()
    count = Overruled(registry)
    tokens = others = 0
    for rows, later in steps:
        drawn, flags = ([row[i] for row in rows] for i in (0, 1))
        tokens += sum(drawn)
        others += sum(a and b for a, b in rows)
        given_flags = torch.tensor(flags) if any(flags) else None
        if later:
            answers = [[7] * i for i, _ in enumerate(rows)]
            count.hold("vote", answers, given_flags)
            for answer, new in zip(answers, drawn, strict=True):
                answer += [5] * new
            count.settle()
            count.settle()
        else:
            count.add("vote", drawn, given_flags)
    count.tell()
    count.tell()
    assert shown(registry) == ((tokens, others) if tokens else (None, None))


def test_guards_are_counted_apart(counted):
    registry, count = counted
    count.add("vote", [True, True], None)
    count.add("agla", [True, True, True], torch.tensor([True, False, True]))
    count.tell()
    assert shown(registry) == (2, 0)
    assert shown(registry, "agla") == (3, 2)
    assert b'lvlm_guard_tokens_overruled_total{guard="agla"} 2.0' in generate_latest(registry)


def test_an_answer_that_was_cut_back_before_the_next_step_does_not_count(counted):
    registry, count = counted
    answer = [1, 2, 3]
    count.hold("vote", [answer], torch.tensor([True]))
    del answer[2:]
    count.settle()
    count.tell()
    assert shown(registry) == (None, None)


def test_what_was_counted_shows_by_itself_when_no_other_token_follows(counted, monkeypatch):
    monkeypatch.setattr(overruled, "EVERY", 0.05)
    registry, count = counted
    for _ in range(2):
        before = shown(registry)[0] or 0
        count.add("vote", [True], torch.tensor([True]))
        until = time.monotonic() + 10
        while shown(registry)[0] != before + 1 and time.monotonic() < until:
            time.sleep(0.01)
    assert shown(registry) == (2, 2)


def test_a_row_of_a_prompt_that_is_read_in_chunks_draws_no_token():
    states = SimpleNamespace(prefill_len=SimpleNamespace(np=np.array([0, 50, 90, 0])))
    ctx = SimpleNamespace(idx_mapping_np=np.array([2, 1, 2]), seq_lens_upper_bound_np=np.array([64, 50, 97]))
    assert drawn_of(states, ctx, [0, 1, 2]) == [False, True, True]
    assert drawn_of(states, ctx, [1]) == [True]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2**32), st.booleans()), min_size=1, max_size=6), st.sampled_from([0.05, 0.5]))
def test_vote_flags_the_rows_whose_best_token_its_votes_changed(drawn, beta):
    ballot = Ballot(4.0, beta, {"cat": 0.99, "car": 0.01, "dog": 0.5})
    logits = torch.stack([torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 2 for seed, _ in drawn])
    told = {}

    def seen(rows, flags):
        told.update(zip(rows, [False] * len(rows) if flags is None else flags.tolist(), strict=True))

    count = Counting(TOKENIZER, Vocabulary.of(("cat", "car", "dog")))
    guarded = {row: ballot for row, (_, asked) in enumerate(drawn) if asked}
    out = count(logits.clone(), guarded, lambda rows: [WORD for _ in rows], seen)
    assert told == {row: int(out[row].argmax()) != int(logits[row].argmax()) for row in guarded}


def test_other_preferences_are_seen_where_the_best_token_differs():
    plain = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    other = torch.tensor([[0.0, 2.0, 2.5], [9.0, 2.0, 1.0]])
    assert preferred_others(other, plain).tolist() == [True, False]
