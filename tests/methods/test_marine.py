"""MARINE by the figures of its card, and against two plain readings of two prompts."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.method import Step
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching import Match, Vocabulary

QUESTIONS = ("What is there, and where?", "Is there a dog?")


def told(*names):
    return methods.MARINE(finds=lambda image: list(names))


def test_golden_figures():
    logits, other = (torch.tensor([row], dtype=torch.float64) for row in ([2, 1.8, 0, -1], [2.5, 1, 0.5, -3]))

    call = SimpleNamespace(memory={"marine": [["dog"]]})
    step = Step(logits, logits, torch.tensor([1]), [0], lambda row: [], call)
    found = methods.MARINE().assemble(step, (other,))[0]
    mixed = torch.tensor([-0.425073, -1.535073, -2.425073, -5.175073], dtype=torch.float64)
    torch.testing.assert_close(found, mixed.log_softmax(-1), rtol=0, atol=1e-6)
    assert found.exp().tolist() == pytest.approx([0.678635, 0.223650, 0.091843, 0.005871], abs=1e-6)


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.make("llava", scale=3.0)
    yield guard(model, processor, told("dog"))
    unguard(model)
    unguard(processor)


def asked(pair, questions=QUESTIONS, prompt=tiny.prompt):
    prompts = [prompt(pair[1], question) for question in questions]
    pictures = [tiny.picture(seed) for seed in range(len(prompts))]
    return pair[1](images=pictures, text=prompts, padding=True, return_tensors="pt").to(torch.float64)


HOW = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("gamma", [0.3, 0.7, 1.0])
def test_every_step_mixes_the_plain_reading_and_that_of_the_longer_prompt(pair, gamma):
    model, (question, _) = pair[0], QUESTIONS
    method = methods.MARINE(gamma=gamma, finds=lambda image: ["dog", "red car"])
    found = model.generate(**asked(pair, [question]), guard=method, **HOW)
    longer = f"This image contains dog, red car. Based on this, {question}"
    readings = [asked(pair, [text]) for text in (question, longer)]
    for place in range(len(found.logits)):
        answer, each = found.sequences[:, readings[0]["input_ids"].shape[1] :][:, :place], []
        for inputs in readings:
            ids = torch.cat([inputs["input_ids"], answer], 1)
            with torch.no_grad():
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"])
            each.append(out.logits[0, -1].log_softmax(-1))
        expected = ((1 - gamma) * each[0] + gamma * each[1]).log_softmax(-1)
        torch.testing.assert_close(found.logits[place][0].double(), expected, rtol=0, atol=1e-4)


def test_gamma_zero_and_a_picture_in_which_nothing_is_found_are_plain_bit_for_bit(pair):
    plain = pair[0].generate(**asked(pair), guard=False, **HOW)
    for method in (methods.MARINE(gamma=0.0, matcher=Brightness()), told()):
        found = pair[0].generate(**asked(pair), guard=method, **HOW)
        assert all(torch.equal(a, b.to(a)) for a, b in zip(found.logits, plain.logits, strict=True))
        assert found.guard.local_forwards == 0
    assert found.guard.notes == ["objects found: none; none"]
    dark = tiny.picture(1)  # of a batch, the row about which nothing is found is plain, the other is not
    some = methods.MARINE(finds=lambda image: [] if image.tobytes() == dark.tobytes() else ["dog"])
    found = pair[0].generate(**asked(pair), guard=some, **HOW)
    assert all(torch.allclose(a[1], b[1].to(a), atol=1e-5) for a, b in zip(found.logits, plain.logits, strict=True))
    assert not torch.equal(found.logits[0][0], plain.logits[0][0].to(found.logits[0]))


def test_any_matcher_says_which_objects_of_a_list_are_there(pair):
    class Sure(Brightness):
        def knows(self, claims):
            return ["unicorn" not in claim for claim in claims]

        def support(self, image, claims):
            return torch.tensor([0.97 if " cat " in claim else 0.4 for claim in claims])

    matcher, image = Sure(), tiny.picture(1)
    assert matcher.objects(image, 0.95) == ["cat"]
    assert matcher.objects(image, 0.3, Vocabulary.of(("dog", "cat", "unicorn"))) == ["dog", "cat"]
    by_matcher = pair[0].generate(**asked(pair), guard=methods.MARINE(matcher=matcher), **HOW)
    assert torch.equal(by_matcher.sequences, pair[0].generate(**asked(pair), guard=told("cat"), **HOW).sequences)


def test_what_it_cannot_do_is_an_error_before_the_first_token(pair):
    for knobs in ({"gamma": 1.5}, {"at": 0.0}, {"template": "Look."}, {"objects": ()}, {"finds": "dog"}):
        with pytest.raises(KnobError):
            methods.MARINE(**knobs)

    def maps_only(images, texts):
        return [Match(torch.ones(4, 4), 0.5) for _ in images]

    with pytest.raises(UnsupportedCallError, match="no probabilities"):
        pair[0].generate(**asked(pair), guard=methods.MARINE(matcher=maps_only), max_new_tokens=1)
    other = pair[1](
        images=tiny.picture(1), text=tiny.prompt(pair[1], "What?"), guard_text="Why?", return_tensors="pt"
    ).to(torch.float64)
    with pytest.raises(UnsupportedCallError, match="does not hold the question"):
        pair[0].generate(**other, max_new_tokens=1)
