"""What every method on the shelf promises, whichever it is: the registry is the only list."""

import dataclasses
import inspect
from typing import get_type_hints

import pytest
import tiny
import torch
from drawn_statistics import drawn
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.knobs import defaults_of
from lvlm_guard.matching.match import ABSTAIN, Match

NAMES = [name for name in methods.REGISTRY.names() if methods.REGISTRY.where(name).startswith("lvlm_guard.")]
STEPS = 6


def made(name, model):
    """A method under which every branch is wanted."""
    wanted = {"beta": 0.01, "matcher": Brightness(), "objects": ("dog", "cat"), "at": 0.01}
    if methods.REGISTRY.get(name).needs_statistics:
        wanted["statistics"] = drawn(name, model)
    return methods.REGISTRY.get(name)(**{key: wanted[key] for key in wanted if key in defaults_of(name)})


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.make("llava", scale=3.0)
    yield guard(model, processor, "apc")
    unguard(model)
    unguard(processor)


def asked(pair, rows=slice(0, 2)):
    _, processor = pair
    pictures = [tiny.picture(1, 60, 40), tiny.picture(2, 40, 60)][rows]
    texts = [tiny.prompt(processor, text) for text in ("Is there a dog?", "What is there, and where?")][rows]
    return processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_is(name):
    kind = methods.REGISTRY.get(name)
    assert kind.name == name
    assert kind.paper == "ours" or kind.paper.startswith("arXiv:")
    assert kind.paper == "ours" or kind.paper in inspect.getmodule(kind).__doc__
    assert kind.cost
    assert set(kind.changes().split(", ")) <= {"logits", "pictures", "prompt", "cache", "states"}
    assert dataclasses.is_dataclass(kind)
    assert hash(kind()) == hash(kind())
    assert get_type_hints(kind), "the page in the browser reads the knobs' types"


@pytest.mark.parametrize("name", NAMES)
def test_its_tokens_do_not_depend_on_how_its_branches_run(pair, name):
    model, _ = pair
    inputs = asked(pair)
    for mode in ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 2}):
        answers = []
        for how in ({"guard_execution": "lazy"}, {"guard_execution": "batched"}, {"use_cache": False}):
            if name == "focus" and how == {"use_cache": False}:
                continue  # it reads the model's own cache
            torch.manual_seed(5)
            answers.append(model.generate(**inputs, guard=made(name, model), max_new_tokens=STEPS, **mode, **how))
        assert all(torch.equal(answers[0], answer) for answer in answers[1:]), mode


@pytest.mark.parametrize("name", NAMES)
def test_a_request_in_a_batch_is_answered_as_alone(pair, name):
    model, _ = pair
    how = {"guard": made(name, model), "max_new_tokens": STEPS, "do_sample": False}
    together = model.generate(**asked(pair), **how)[:, -STEPS:]
    for row in (0, 1):
        assert torch.equal(model.generate(**asked(pair, slice(row, row + 1)), **how)[0, -STEPS:], together[row])


class Silent(Brightness):
    """Knows nothing: abstains, with a constant map."""

    def __call__(self, images, texts):
        return [Match(torch.ones(8, 8), 0.0, share=1.0) for _ in images]

    def knows(self, claims):
        return [False] * len(claims)

    def support(self, image, claims):
        return torch.full((len(claims),), ABSTAIN)


@pytest.mark.parametrize("name", ["agla", "focus", "vote", "dlc", "marine"])
def test_where_the_matcher_abstains_the_answer_is_the_plain_one(pair, name):
    model, _ = pair
    knobs = {"matcher": Silent()} | ({"ends": 0.0} if name == "vote" else {})
    how = {"max_new_tokens": 2 * STEPS, "do_sample": False}
    # both readings are of the whole picture: l + alpha * l
    frame = {"frame": "original"} if name == "agla" else {}
    guarded = model.generate(**asked(pair), guard=methods.REGISTRY.get(name)(**knobs, **frame), **how)
    assert torch.equal(guarded, model.generate(**asked(pair), guard=False, **how))
