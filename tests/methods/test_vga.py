"""VGA by the figures of its card, and its heads against the values of a plain call."""

import math

import pytest
import tiny
import torch

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import KnobError, MissingViewError
from lvlm_guard.matching.claims import first_tokens
from lvlm_guard.methods.vga import guided, spoken


def close(found, expected):
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_golden_figures():
    values, weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.25, 0.75])
    d = weight @ values
    assert d.tolist() == [0.25, 1.5]
    z = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])[None, :, None]  # two heads
    found = guided(z, d.expand_as(z), torch.tensor([0.2]))
    close(found[0, :, 0], [[1.031540, 1.189240], [-0.931540, 0.410760]])


def test_what_says_nothing_sure_says_most_about_no_object():
    for p, figure in (([0.5, 0.3], 1.021090), ([0.98, 0.01], 0.095002)):
        sure = -sum(each * math.log(each) for each in p) / math.log(2)
        assert sure == pytest.approx(figure, abs=1e-6)
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    top = logits.softmax(-1).sort(descending=True).values[:, :10]  # not normalised again
    torch.testing.assert_close(spoken(logits, [])[:, 0], -(top * top.log()).sum(-1))
    assert spoken(torch.tensor([[0.0, -math.inf]]), []).tolist() == [[0.0]]
    torch.testing.assert_close(spoken(logits, [3, 7]), logits.softmax(-1)[:, [3, 7]])


def test_an_object_is_known_by_the_token_that_its_name_begins_with():
    _, processor = tiny.make("llava")
    pieces = first_tokens(processor.tokenizer, ["dog", "cat", "dog"])
    assert [processor.tokenizer.decode([piece]) for piece in pieces] == ["d", "c"]


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny.make("llava", scale=3.0)
    yield guard(model, processor, "vga")
    unguard(model)
    unguard(processor)


def asked(pair, text="Is there a dog?"):
    made = pair[1](images=tiny.picture(1), text=tiny.prompt(pair[1], text), return_tensors="pt")
    return made.to(torch.float64)


@pytest.mark.parametrize("text", ["Is there a dog?", "What is there?"])
def test_each_head_is_moved_by_the_values_of_the_image_tokens(pair, text):
    model, inputs = pair[0], asked(pair, text)
    how = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    found = model.generate(**inputs, guard=methods.VGA(beta=3.0, layers_from=0.5, layers_to=1.0), **how).logits[0][0]
    kept = {key: value for key, value in inputs.items() if key != "guard_views"}
    shown = kept["input_ids"][0] == model.config.image_token_id
    with torch.no_grad():
        p = model(**kept).logits[0, shown].softmax(-1)
    if "dog" in text:
        g = p[:, pair[1].tokenizer.encode("d", add_special_tokens=False)[0]]
    else:
        top = p.sort(descending=True).values[:, :10]
        g = -(top * top.log()).sum(-1)
    g = g / g.sum()
    hooks, values = [], {}
    for layer in model.model.language_model.layers[2:]:  # round(.5 * 3) = 2 of 3

        def values_of(module, args, output, layer=layer):
            values[layer] = output[0, shown].view(-1, 2, 16).repeat_interleave(2, 1)  # [m, heads, size]

        def joins(module, args, layer=layer):
            z, d = args[0][0, -1].view(4, 16), torch.einsum("m,mhd->hd", g, values[layer])
            c = (1 + torch.cosine_similarity(z, d, dim=-1)) / 2
            moved = z + 3.0 * (g > 1e-8).double().mean() * (2 - 4 * c / c.sum()).relu()[:, None] * d
            return (torch.cat([args[0][:, :-1], moved.view(1, 1, -1)], 1),)

        hooks += [layer.self_attn.v_proj.register_forward_hook(values_of)]
        hooks += [layer.self_attn.o_proj.register_forward_pre_hook(joins)]
    try:
        with torch.no_grad():
            expected = model(**kept).logits[0, -1]
            plain = model.generate(**inputs, guard=False, **how).logits[0][0]
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert plain.shape == found.shape


def test_what_it_cannot_do_is_an_error(pair):
    for knobs in ({"beta": -1.0}, {"layers_from": 0.9}, {"layers_to": 2.0}, {"objects": ()}, {"objects": ("?",)}):
        with pytest.raises(KnobError):
            methods.VGA(**knobs)
    inputs = {key: value for key, value in asked(pair).items() if key != "guard_views"}
    with pytest.raises(MissingViewError):
        pair[0].generate(**inputs, max_new_tokens=1)
