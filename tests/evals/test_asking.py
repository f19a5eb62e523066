"""Asking a model: through the public API, each decoder at its own cost, in any batch the same answers."""

from dataclasses import replace

import pytest
import torch

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.infer.generate import answer_length, matcher_answers, prepare, prepare_run, until
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings

SETTINGS = Settings(limit=2, captions=4, seeds=2, batch=4, max_new_tokens=12)
EVERYONE = ("greedy", "sample", "apc(0.5)", "agla", "agla-sample", "agla-random", "vote", "vcd")


@pytest.fixture(scope="module")
def prepared():
    return prepare_run(SETTINGS)


@pytest.fixture(scope="module")
def questions(prepared):
    return prepared.tasks[0]


@pytest.fixture(scope="module")
def captions(prepared):
    return prepared.tasks[1]


def texts(prepared, task, items, name, seed=0):
    (said,) = prepared.answerer.ask(task, items, [(name, seed)])
    return [one.text for one in said]


def test_greedy_is_plain_generate_one_by_one(prepared, captions):
    model, processor = prepared.answerer.model, prepared.answerer.processor
    for item, text in zip(captions.items, texts(prepared, captions, captions.items, "greedy"), strict=True):
        inputs = prepare(processor, [item])
        del inputs["guard_views"]
        tokens = model.generate(**inputs, guard=False, max_new_tokens=12, do_sample=False)
        assert processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == text


@pytest.mark.parametrize("name", EVERYONE)
def test_a_batch_gives_the_answers_of_one_by_one(prepared, questions, captions, name):
    for task, items in ((questions, questions.items[:6]), (captions, captions.items)):
        alone = [texts(prepared, task, [item], name, 1)[0] for item in items]
        assert texts(prepared, task, items, name, 1) == alone


def test_seeds_differ_and_the_caller_s_random_state_is_left_alone(prepared, captions):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (texts(prepared, captions, captions.items, "sample", seed) for seed in (0, 1))
    assert first != second
    assert torch.equal(torch.rand(3), expected)


def test_the_matcher_answers_by_its_support(prepared, questions):
    matcher = prepared.answerer.matcher
    items = questions.items[:4]
    single = [float(matcher.support(item.pictures()[0], [item.prompt])[0]) > 0.5 for item in items]
    assert [one.text == "yes" for one in matcher_answers(matcher, items)] == single
    assert texts(prepared, questions, items, "matcher") == ["yes" if yes else "no" for yes in single]


def test_every_decoder_pays_for_its_own_masks(prepared, captions):
    todo = [("agla", 0), ("agla", 0), ("greedy", 0), ("vcd", 0)]
    agla, again, greedy, vcd = prepared.answerer.ask(captions, captions.items, todo)
    # the second asking is no cheaper for what the first has prepared
    assert [(one.masks, one.local_forwards, one.local_tokens) for one in agla] == [
        (one.masks, one.local_forwards, one.local_tokens) for one in again
    ]
    assert sum(one.masks for one in agla) >= len(captions.items)
    assert sum(one.local_tokens for one in vcd) > 0
    assert {(one.masks, one.local_forwards, one.local_tokens) for one in greedy} == {(0.0, 0.0, 0.0)}
    assert all(one.seconds > 0 and one.peak_mib > 0 and one.forwards > 0 for one in agla + greedy)


def test_an_answer_that_was_cut_is_known_from_one_that_ended(prepared, captions):
    (cut,) = prepared.answerer.ask(replace(captions, max_new_tokens=2), captions.items, [("greedy", 0)])
    (whole,) = prepared.answerer.ask(replace(captions, max_new_tokens=64), captions.items, [("greedy", 0)])
    assert [(one.tokens, one.ended) for one in cut] == [(2, False)] * len(cut)
    assert all(one.ended and one.tokens > 2 for one in whole)
    # a stop text ends an answer too
    stop = whole[0].text.split()[2]
    (stopped,) = prepared.answerer.ask(replace(captions, until=(stop,)), captions.items[:1], [("greedy", 0)])
    assert stopped[0].ended
    assert stopped[0].text == whole[0].text.split(stop, 1)[0]


def test_an_error_of_generate_is_raised_and_no_answer_stands_for_it(prepared, captions, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Item("0", "0", captions.items[0].prompt, (tmp_path / "broken.png",))
    missing = Item("0", "0", captions.items[0].prompt, (tmp_path / "missing.png",))
    for item, said in ((broken, "broken.png"), (missing, "missing.png")):
        with pytest.raises(GuardError, match=said):
            prepared.answerer.ask(EvalTask("t", "chair", [item], 4), [item], [("greedy", 0)])


def test_lengths_count_the_end_and_stops_cut_at_the_first():
    assert answer_length([5, 6, 2, 0, 0], {2}) == (3, True)
    assert answer_length([5, 6, 7], {2}) == (3, False)
    assert answer_length([], {2}) == (0, False)
    assert until("a dog. And a cat\n\nmore", ["\n\n", "And"]) == "a dog. "
    assert until("unchanged", ["", "zzz"]) == "unchanged"
