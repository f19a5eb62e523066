"""DLC by the figures of its card, and against the formula over texts made from scratch."""

import math

import pytest
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching.match import ABSTAIN, Match, Matcher

L = torch.tensor([2.0, 1.8, 0.0, -1.0], dtype=torch.float64)
V = torch.tensor([0.05, 0.15, 0.10, 0.10], dtype=torch.float64)


def test_golden_figures():
    found = methods.DLC().calibrated(L, V, 0.1, L[-1])
    assert found.tolist() == pytest.approx([2.965068, 2.729269, 0.0, -1.499303], abs=1e-6)
    shifted = methods.DLC(mode="shifted").calibrated(L, V, 0.1, L[-1])
    assert float(shifted[-1]) == -1.0  # the last of the top stays where it is, and more evidence is never less
    assert float(shifted[2]) > 0.0
    assert methods.DLC().matched_temperature() == pytest.approx(0.667, abs=1e-3)
    equal = methods.DLC().calibrated(L, torch.full_like(V, 0.1), 0.1, L[-1])
    torch.testing.assert_close(equal, L / methods.DLC().matched_temperature())


class Cosines(Matcher):
    """Compares texts with pictures, by their letters and the picture's brightness; remembers what it was asked."""

    version = "cosines"

    def __init__(self):
        self.asked = []

    def __call__(self, images, texts):
        return [Match(torch.ones(4, 4), 0.5) for _ in images]

    def similarity(self, images, texts):
        self.asked += texts
        return torch.tensor([[cosine(image, text) for text in texts] for image in images])


def cosine(image, text):
    return (sum(map(ord, text)) * 7919 % 100 + image.getpixel((0, 0))[0] % 10) / 200


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.make("llava", scale=3.0)
    yield guard(model, processor, methods.DLC(matcher=Cosines()))
    unguard(model)
    unguard(processor)


def asked(pair, text="What?"):
    made = pair[1](images=tiny.picture(1), text=tiny.prompt(pair[1], text), return_tensors="pt")
    return made.to(torch.float64)


@pytest.mark.parametrize("text", ["What?", "Is there a dog?"])
@pytest.mark.parametrize("mode", ["official", "shifted"])
def test_every_step_follows_the_formula(pair, text, mode):
    model, tokenizer = pair[0], pair[1].tokenizer
    how = {"max_new_tokens": 14, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    matcher, inputs = Cosines(), asked(pair, text)
    out = model.generate(**inputs, guard=methods.DLC(matcher=matcher, mode=mode, top=12), **how)
    ids, image = out.sequences[0], inputs["guard_views"].views()[0].image
    kept = {key: value for key, value in inputs.items() if key not in ("guard_views", "input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], **kept).logits[0].float()
    start, buffer = inputs["input_ids"].shape[1], []
    for place in range(len(out.logits)):
        l, expected = plain[start - 1 + place], plain[start - 1 + place].clone()  # noqa: E741
        answer = ids[start : start + place].tolist()
        yes_no = text.startswith("Is")
        if yes_no or place >= 8:
            said = text if yes_no else tokenizer.decode(answer[-8:]).strip()
            buffer = [*buffer, cosine(image, said)][-8:]
            b = buffer[-1] if len(buffer) <= 3 else sum(buffer) / len(buffer)
            values, tokens = l.topk(12)
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                alone = tokenizer.decode([token]).strip()
                whole = f"{said} {alone}" if yes_no else tokenizer.decode([*answer[-8:], token]).strip()
                v = b if token < 5 else (cosine(image, whole) + cosine(image, alone)) / 2
                if not alone:
                    continue
                shift = float(values[-1]) if mode == "shifted" else 0.0
                lam, r = (1 - b) ** 2, (v - b) / (1 - b + 1e-6)
                expected[token] = shift + (value - shift) * math.exp(lam / (1 + math.exp(-r)))
        torch.testing.assert_close(out.logits[place][0].float(), expected, rtol=1e-4, atol=1e-4)
    assert matcher.asked
    assert len(matcher.asked) == len(set(matcher.asked)), "each text is asked once"


def test_scale_zero_is_plain_bit_for_bit_and_the_matcher_is_not_asked(pair):
    how = {"max_new_tokens": 10, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    matcher = Cosines()
    found = pair[0].generate(**asked(pair), guard=methods.DLC(scale=0.0, matcher=matcher), **how)
    plain = pair[0].generate(**asked(pair), guard=False, **how)
    assert torch.equal(found.sequences, plain.sequences)
    assert all(torch.equal(a, b.to(a)) for a, b in zip(found.logits, plain.logits, strict=True))
    assert not matcher.asked


class Half(Brightness):
    """Abstains on texts whose last letter is in the second half of the alphabet."""

    def knows(self, claims):
        return [claim[-1:].lower() <= "m" for claim in claims]

    def support(self, image, claims):
        known = self.knows(claims)
        return torch.where(torch.tensor(known), super().support(image, claims), ABSTAIN)


@pytest.mark.parametrize("mode", ["official", "shifted"])
def test_probabilities_will_do_and_abstentions_are_neither_for_nor_against(pair, mode):
    how = {"max_new_tokens": 12, "do_sample": False}
    answers = [
        pair[0].generate(**asked(pair), guard=methods.DLC(matcher=Half(), mode=mode), **how, **more)
        for more in ({}, {"use_cache": False})
    ]
    assert torch.equal(*answers)


def test_what_it_cannot_do_is_an_error(pair):
    for knobs in ({"scale": -1.0}, {"top": 0}, {"mode": "mine"}):
        with pytest.raises(KnobError):
            methods.DLC(**knobs)

    def maps_only(images, texts):
        return [Match(torch.ones(4, 4), 0.5) for _ in images]

    with pytest.raises(UnsupportedCallError, match="no probabilities"):
        pair[0].generate(**asked(pair), guard=methods.DLC(matcher=maps_only), max_new_tokens=1)
