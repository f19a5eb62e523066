"""Guarded models and processors travel between processes and to disk, as plain ones do."""

import copy
import io
import pickle

import pytest
import tiny
import torch
from asking import RUN, Collate, agla, ask
from torch.utils.data import DataLoader

from lvlm_guard import guard, unguard
from lvlm_guard.engine.guarded import guarded_class
from lvlm_guard.engine.subclass import plain_class


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("sent", [lambda thing: pickle.loads(pickle.dumps(thing)), saved], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pair_that_was_sent_is_guarded_as_before(family, sent):
    pair = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, processor = sent(pair)
    assert (type(model), type(processor)) == tuple(map(type, pair))
    assert model is not pair[0]
    assert processor is model._lvlm_guard.processor  # one pair, as it was
    inputs, expected = ask((model, processor), ("What?", 1)), ask(pair, ("What?", 1))
    assert inputs["guard_views"].views()[0].text == "What?"
    assert all(torch.equal(inputs[key], expected[key]) for key in expected if key != "guard_views")
    answer = pair[0].generate(**expected, **RUN)
    assert torch.equal(model.generate(**inputs, **RUN), answer)
    plain = model.generate(**inputs, **RUN, guard=False)
    assert not torch.equal(plain, answer)
    unguard(model)
    unguard(processor)
    assert (type(model), type(processor)) == (pair[0]._lvlm_guard.plain, plain_class(pair[1]))
    assert torch.equal(
        model.generate(**{key: value for key, value in inputs.items() if key != "guard_views"}, **RUN)[:, -5:],
        plain[:, -5:],
    )


def test_an_object_of_a_subclass_of_a_guarded_class_is_copied_guarded_again_or_not(pair):
    model, _ = pair
    mine = model.__class__ = type("Mine", (type(model),), {})
    assert type(copy.deepcopy(model)) is mine
    once_more = guarded_class(mine)
    model.__class__ = once_more
    assert type(copy.deepcopy(model)) is once_more


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_of_a_data_loader_make_guarded_inputs(start):
    model, processor = guard(*tiny.make("llava", scale=5.0), agla(beta=0.1))
    collate = Collate(processor)
    loader = DataLoader([1, 2], batch_size=1, num_workers=1, collate_fn=collate, multiprocessing_context=start)
    answers = [model.generate(**inputs.to(torch.float64), **RUN) for inputs in loader]
    expected = [model.generate(**collate([seed]).to(torch.float64), **RUN) for seed in (1, 2)]
    assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))
