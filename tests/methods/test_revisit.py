"""ReVisiT by the figures of its card, and against a plain forward pass over the prompt."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.assembly import divergence
from lvlm_guard.engine.method import Step
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.evals.decoders.published import ReVisiTOfficial, swapped_divergence

L, F, OTHER = [2.0, 1.8, 0.0, -1.0], [2.5, 1.0, 0.5, -3.0], [0.0, 2.0, 1.0, -1.0]


def rows(*given):
    return torch.tensor(given, dtype=torch.float64)


def assembled(method, logits, *candidates):
    decoder = SimpleNamespace(words=lambda states, words: states[:, words])
    call = SimpleNamespace(decoder=decoder, memory={method.name: {0: [rows(*candidates)]}})
    step = Step(rows(logits), rows(logits), torch.tensor([1]), [0], lambda row: [], call)
    return method.assemble(step, None)[0]


def test_golden_figures():
    kept = rows(L[:3])
    assert kept.log_softmax(-1)[0].tolist() == pytest.approx([-0.669912, -0.869912, -2.669912], abs=1e-6)
    for other, swapped, true in ((F, 0.014167, 0.040287), (OTHER, 0.048458, 0.121667)):
        assert float(swapped_divergence(kept, rows(other[:3]))) == pytest.approx(swapped, abs=1e-6)
        assert float(divergence(kept, rows(other[:3]))) == pytest.approx(true, abs=1e-6)
    for candidates in ((F, OTHER), (OTHER, F)):  # in any order
        found = assembled(methods.ReVisiT(beta=0.1), L, *candidates)
        assert found[:3].tolist() == pytest.approx([-0.976268, -2.676268, -4.976268], abs=1e-6)
        assert found.softmax(-1).tolist() == pytest.approx([0.832640, 0.152110, 0.015250, 0.0], abs=1e-6)


def test_the_release_s_divergence_can_choose_another_token():
    plain, z1, z2 = [0.0, -1.1, -1.7], [6.1, -0.2, -4.0], [-1.3, 1.4, -1.0]
    for measure, figures in ((swapped_divergence, (0.135252, 0.112700)), (divergence, (0.130434, 0.252583))):
        assert [float(measure(rows(plain), rows(z))) for z in (z1, z2)] == pytest.approx(figures, abs=1e-6)
    for kind, chosen in ((methods.ReVisiT, z1), (ReVisiTOfficial, z2)):
        found = assembled(kind(beta=0.0), plain, z1, z2)
        expected = rows(plain).log_softmax(-1) + rows(chosen).log_softmax(-1)
        torch.testing.assert_close(found, expected[0])


def test_a_token_that_says_what_the_model_says_sharpens_and_changes_no_greedy_answer():
    found = assembled(methods.ReVisiT(beta=0.0), L, L, OTHER)
    torch.testing.assert_close(found.softmax(-1), (rows(L)[0] / methods.ReVisiT().matched_temperature()).softmax(-1))


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.make("llava", scale=3.0)
    yield guard(model, processor, "revisit")
    unguard(model)
    unguard(processor)


def asked(pair, texts=("Is there a dog?", "What?")):
    prompts = [tiny.prompt(pair[1], text) for text in texts]
    pictures = [tiny.picture(seed) for seed in range(len(texts))]
    inputs = pair[1](images=pictures, text=prompts, padding=True, return_tensors="pt")
    return inputs.to(torch.float64)


@pytest.mark.parametrize("kind", [methods.ReVisiT, ReVisiTOfficial])
def test_its_logits_are_those_of_a_plain_pass_over_the_prompt(pair, kind):
    model, inputs = pair[0], asked(pair)
    length, beta = inputs["input_ids"].shape[1], 1e-3
    method, official = kind(early=(2, 3), beta=beta), kind is ReVisiTOfficial
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, guard=method, **how)
    for row in range(2):
        kept = {key: value[row : row + 1] for key, value in inputs.items() if key != "guard_views"}
        ids = out.sequences[row : row + 1]
        whole = kept | {
            "input_ids": ids,
            "attention_mask": torch.nn.functional.pad(kept["attention_mask"], (0, 4), value=1),
        }
        with torch.no_grad():
            seen = model(**whole, output_hidden_states=True)
        shown = ids[0] == model.config.image_token_id
        second, last = (seen.hidden_states[k][0, shown] for k in (2, 3))  # the last one is normed
        if not official:
            second = model.model.language_model.norm(second)
        candidates = model.lm_head(torch.cat([second, last]))
        for place in range(4):
            logits = seen.logits[0, length - 1 + place]
            some = logits >= logits.max() + torch.tensor(beta).log()
            q = candidates[:, some].log_softmax(-1)
            p = logits[some].log_softmax(-1)
            m = (p.exp() + q.exp()) / 2
            if official:
                apart = ((m * (m.log() - p)).mean(-1) + (m * (m.log() - q)).mean(-1)) / 2
            else:
                apart = ((p.exp() * (p - m.log())).sum(-1) + (q.exp() * (q - m.log())).sum(-1)) / 2
            expected = logits[some] if some.sum() == 1 else p + q[apart.argmin()]
            torch.testing.assert_close(out.logits[place][row, some].double(), expected, rtol=0, atol=1e-5)


def test_beta_one_is_greedy(pair):
    how = {"max_new_tokens": 8, "do_sample": False}
    found = pair[0].generate(**asked(pair), guard=methods.ReVisiT(beta=1.0), **how)
    assert torch.equal(found, pair[0].generate(**asked(pair), guard=False, **how))


@pytest.mark.parametrize("knobs", [{"early": "first"}, {"beta": 2}], ids=str)
def test_a_knob_out_of_range_is_an_error(knobs):
    with pytest.raises(KnobError):
        methods.ReVisiT(**knobs)


@pytest.mark.parametrize("early", [(0,), (4,), ()])
def test_a_layer_that_the_model_has_not_is_an_error_before_the_first_token(pair, early):
    with pytest.raises(KnobError, match="this model has 3 layers"):
        pair[0].generate(**asked(pair), guard=methods.ReVisiT(early=early), max_new_tokens=1)


def test_a_prompt_whose_picture_is_cached_is_refused(pair):
    inputs = asked(pair, ["What?"])
    out = pair[0].generate(**inputs, guard=False, max_new_tokens=3, return_dict_in_generate=True)
    inputs["input_ids"] = torch.cat([out.sequences, out.sequences[:, -2:]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(UnsupportedCallError, match="without past_key_values"):
        pair[0].generate(**inputs, past_key_values=out.past_key_values, guard="revisit", max_new_tokens=2)
