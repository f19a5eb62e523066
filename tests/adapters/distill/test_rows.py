"""Batches of answers: each answer token's probability is the one that generate() gave it, in either layout."""

import numpy as np
import pytest
import tiny
import torch

from lvlm_guard.adapters.distill.lessons import Answer
from lvlm_guard.adapters.distill.rows import Layout, packable
from lvlm_guard.adapters.distill.training import log_probs
from lvlm_guard.errors import TextError
from lvlm_guard.pretrained import ask

PROMPTS = ["What is there?", "Describe the picture, please.", "Is there a dog in the image?"]


def told(prompt, tokens, open_=(), soft=()):
    return Answer(prompt, "dog" if "dog" in prompt else None, None, list(tokens), "", list(open_), [], list(soft))


def generated(model, processor, picture, prompt, length):
    """Plain greedy tokens, and the log-probabilities of the whole vocabulary at each, from generate() itself."""
    inputs = ask(processor, [[picture]], [prompt]).to(torch.float64)
    out = model.generate(
        **inputs, max_new_tokens=length, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    logits = torch.cat(out.logits).log_softmax(-1)
    return out.sequences[0, -len(logits) :].tolist(), logits


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def known(request):
    model, processor = tiny.make(request.param)
    examples, expected = [], []
    for seed, prompts in ((1, PROMPTS), (2, PROMPTS[1:])):
        picture = tiny.picture(seed)
        said = [generated(model, processor, picture, prompt, 3 + k) for k, prompt in enumerate(prompts)]
        examples.append((picture, [told(prompt, tokens) for prompt, (tokens, _) in zip(prompts, said, strict=True)]))
        expected += [logits for _, logits in said]
    return model, processor, examples, torch.cat(expected)


def test_every_answer_token_has_the_distribution_that_generate_had_before_it(known):
    model, processor, examples, expected = known
    rows = Layout(model, processor).rows(examples)
    with torch.no_grad():
        found = log_probs(model, rows)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_texts_of_one_picture_share_a_row_only_in_models_whose_picture_does_not_depend_on_them(known):
    model, processor, examples, _ = known
    rows = Layout(model, processor).rows(examples)
    assert packable(model) == (model.config.model_type in ("llava", "llava_next"))
    assert len(rows.inputs["input_ids"]) == (2 if packable(model) else 5)


def test_a_row_for_each_text_gives_what_a_shared_row_gives(known):
    model, processor, examples, _ = known
    if not packable(model):
        pytest.skip("has no shared rows")
    shared, apart = (Layout(model, processor, packed).rows(examples) for packed in (True, False))
    with torch.no_grad():
        a, b = log_probs(model, shared), log_probs(model, apart)
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    assert shared.token.tolist() == apart.token.tolist()


def test_eager_attention_takes_the_shared_row_too():
    models = [tiny.make("llava", attention=attention) for attention in ("sdpa", "eager")]
    example = [(tiny.picture(1), [told(prompt, [40, 41]) for prompt in PROMPTS])]
    with torch.no_grad():
        a, b = (log_probs(model, Layout(model, processor, True).rows(example)) for model, processor in models)
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_soft_targets_and_marks_stand_at_their_tokens():
    model, processor = tiny.make("llava")
    soft = [([7, 8], [0.75, 0.25]), ([9], [1.0])]
    answers = [told(PROMPTS[0], [50, 51]), told(PROMPTS[2], [60, 61, 62], open_=[0, 2], soft=soft)]
    rows = Layout(model, processor).rows([(tiny.picture(1), answers)])
    assert rows.token.tolist() == [50, 51, 60, 61, 62]
    assert rows.first.tolist() == [False, False, True, False, False]
    assert rows.open.tolist() == [False, False, True, False, True]
    assert rows.soft_ids[[2, 4]].tolist() == [[7, 8], [9, 0]]
    np.testing.assert_allclose(rows.soft.sum(-1), [0, 0, 1, 0, 1])


def test_a_batch_of_one_answer_leaves_its_first_token_a_place_that_tells_it():
    model, processor = tiny.make("llava")
    picture = tiny.picture(4)
    tokens, expected = generated(model, processor, picture, PROMPTS[0], 2)
    rows = Layout(model, processor).rows([(picture, [told(PROMPTS[0], tokens)])])
    with torch.no_grad():
        torch.testing.assert_close(log_probs(model, rows), expected, rtol=0, atol=2e-5)


def test_a_prompt_that_shows_the_picture_twice_is_refused():
    model, processor = tiny.make("llava")
    twice = told("<image> and again <image>?", [40])
    with pytest.raises((TextError, ValueError)):
        Layout(model, processor).rows([(tiny.picture(1), [told(PROMPTS[0], [40]), twice])])
