"""FLB by the figures of its card, and where it is APC alone."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from lvlm_guard import guard, methods
from lvlm_guard.engine.method import Step
from lvlm_guard.errors import KnobError, UnsupportedCallError

L, FIRST = [2.0, 1.8, 0.0, -1.0], [2.5, 1.0, 0.5, -3.0]


def step(logits, t, call):
    logits = torch.tensor([logits], dtype=torch.float64)
    return Step(logits, logits, torch.tensor([t]), [0], lambda row: [0] * (t - 1), call)


@pytest.mark.parametrize(
    ("t", "weight", "shares"),
    [
        (2, 0.014631, [0.517494, 0.414491, 0.068015]),
        (11, 0.118041, [0.557802, 0.382582, 0.059616]),
        (51, 0.275375, [0.617393, 0.334436, 0.048171]),
    ],
)
def test_golden_figures(t, weight, shares):
    call, method = SimpleNamespace(memory={}), methods.FLB()
    method.assemble(step(FIRST, 1, call), None)
    found = method.assemble(step(L, t, call), None).softmax(-1)[0]
    assert method.weight(t) == pytest.approx(weight, abs=1e-6)
    assert found.tolist() == pytest.approx([*shares, 0.0], abs=1e-6)
    assert method.weight(201) == pytest.approx(0.299986, abs=1e-6)


def test_the_first_token_and_gamma_zero_are_the_constraint_alone():
    cut = methods.APC(beta=0.1).assemble(step(L, 1, None), None).softmax(-1)
    assert torch.equal(methods.FLB().assemble(step(L, 1, SimpleNamespace(memory={})), None).softmax(-1), cut)
    model, processor = guard(*tiny.make("llava", scale=3.0), "flb", gamma=0.0)
    inputs = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    inputs = inputs.to(torch.float64)
    answers = []
    for chosen in (None, methods.APC(beta=0.1)):
        torch.manual_seed(3)
        how = {} if chosen is None else {"guard": chosen}
        answers.append(model.generate(**inputs, max_new_tokens=8, do_sample=True, **how))
    assert torch.equal(*answers)


def test_an_answer_whose_first_token_was_not_seen_is_an_error():
    with pytest.raises(UnsupportedCallError, match="first logits"):
        methods.FLB().assemble(step(L, 3, SimpleNamespace(memory={})), None)


@pytest.mark.parametrize("knobs", [{"gamma": -1.0}, {"lam": float("inf")}, {"beta": 2.0}], ids=str)
def test_a_knob_out_of_range_is_an_error(knobs):
    with pytest.raises(KnobError):
        methods.FLB(**knobs)
