"""Focus: which image tokens stay, and that the matcher's map is what decides it."""

import any_families
import family_parts
import numpy as np
import pytest
import tiny
import torch
from asking import RUN, ask
from hypothesis import given, settings
from hypothesis import strategies as st
from matchers import Brightness
from PIL import Image

from lvlm_guard import guard, methods
from lvlm_guard.engine.call import Call, within
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.matching.attention import attended
from lvlm_guard.matching.cells import token_relevance
from lvlm_guard.matching.relevance import keep_share, kept_tokens

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
OTHERS = (
    "vipllava", "gemma3", "internvl", "idefics3", "smolvlm", "llava_onevision", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe",
    "mistral3", "qwen2_5_omni_thinker",
)  # fmt: skip
WANTED = {**RUN, "return_dict_in_generate": True, "eos_token_id": None}


def focus(**knobs):
    return methods.Focus(**{"matcher": Brightness(), "beta": 0.1, **knobs})


def made(family):
    """A tiny model of a family and its processor."""
    dtype = torch.float32 if family == "qwen3_vl_moe" else torch.float64  # its experts have no float64
    return tiny.make(family) if family in tiny.FAMILIES else any_families.make(family, dtype=dtype)


def call_of(family, pictures):
    """The call of one request about some pictures."""
    model, processor = guard(*made(family), "apc")
    found = []

    class Looks(methods.APC):
        def check(self, call):
            found.append(call)

    prompt = model._lvlm_guard.family.asked(processor, "What?", len(pictures))
    inputs = processor(images=[pictures], text=[prompt], return_tensors="pt").to(model.dtype)
    model.generate(**inputs, max_new_tokens=1, do_sample=False, guard=Looks())
    return found[0]


def corner(bottom, right, side=64):
    """A map that is bright in one quarter."""
    relevance = torch.zeros(side, side)
    rows, columns = (slice(side // 2, None) if half else slice(side // 2) for half in (bottom, right))
    relevance[rows, columns] = 1
    return relevance


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 48), (40, 80)])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_each_image_token_of_the_prompt_has_a_relevance_and_a_quarter_lights_a_quarter(family, width, height):
    call = call_of(family, [tiny.picture(1, width, height)])
    lit = []
    for bottom in (False, True):
        for right in (False, True):
            (found,) = token_relevance(call, [corner(bottom, right)])
            assert len(found) == int(call.image_positions.sum())
            shows = found[found.isfinite()]
            lit.append(shows > shows.mean())
    assert not (torch.stack(lit).sum(0) == 4).any()
    assert len({tuple(quarter.tolist()) for quarter in lit}) == 4
    assert all(0 < int(quarter.sum()) <= len(quarter) // 2 for quarter in lit)
    first, second = lit[0].nonzero().flatten(), lit[3].nonzero().flatten()  # top left stands before bottom right
    assert first.float().mean() < second.float().mean()


def features_of(call, image):
    """What the model makes of a picture, [n, D]: no map, no cells."""
    inputs = call.redrawn([image])
    tensors = {key: inputs[key] for key in call.family.image_keys if key in inputs}
    tensors = {
        key: value.to(call.model.dtype) if value.is_floating_point() else value for key, value in tensors.items()
    }
    made = call.model.get_image_features(**tensors, return_dict=True).pooler_output
    return torch.cat(list(made)) if isinstance(made, list | tuple) else made.flatten(0, -2)


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_tokens_that_a_quarter_lights_are_those_that_painting_it_changes_most(family):
    """The model itself says which of its tokens show what: a map laid out otherwise would light others."""
    pictures = [tiny.picture(seed, 64, 64) for seed in range(8)]
    call = call_of(family, pictures[:1])
    with torch.no_grad():
        plain = [features_of(call, picture) for picture in pictures]
        for lit in (corner(bottom, right) for bottom in (False, True) for right in (False, True)):
            moved = 0
            for picture, features in zip(pictures, plain, strict=True):
                painted = np.asarray(picture).copy()
                painted[lit.numpy() > 0] = 255 - painted[lit.numpy() > 0]
                moved = moved + (features_of(call, Image.fromarray(painted)) - features).norm(dim=-1)
            (relevance,) = token_relevance(call, [lit])
            assert len(relevance) == len(moved)
            shows = relevance.isfinite()
            middle = (relevance[shows].min() + relevance[shows].max()) / 2
            assert moved[shows & (relevance > middle)].mean() > 1.3 * moved[shows & (relevance < middle)].mean()


def test_the_tokens_of_several_pictures_are_told_apart():
    call = call_of("llava", [tiny.picture(1), tiny.picture(2)])
    one, other = token_relevance(call, [corner(False, False), corner(True, True)])
    assert torch.allclose(one.view(4, 4), other.view(4, 4).flip((0, 1)), atol=0.02)
    assert one.view(4, 4)[:2, :2].min() > one.view(4, 4)[2:, 2:].max()


def test_llavas_cells_are_means_over_the_squeezed_picture_where_nothing_is_cropped():
    relevance = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    call = call_of("llava", [tiny.picture(1, 32, 32)])
    (found,) = token_relevance(call, [relevance])
    expected = torch.nn.functional.avg_pool2d(relevance[None, None], 8).flatten()
    scaled = torch.corrcoef(torch.stack([found, expected]))[0, 1]
    assert scaled > 0.9999


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0.01, 1), st.sets(st.integers(0, 39)))
def test_the_most_relevant_share_stays_and_what_shows_nothing_stays_with_it(values, share, ends):
    relevance = torch.tensor(values, dtype=torch.float32)
    infinite = torch.tensor([i in ends for i in range(len(values))])
    relevance[infinite] = torch.inf
    kept = kept_tokens(relevance, share)
    shows = ~infinite
    assert bool(kept[infinite].all())
    count = int(shows.sum())
    assert int((kept & shows).sum()) == (min(count, max(round(count * share), 1)))
    if count and not kept.all():
        assert relevance[kept & shows].min() >= relevance[~kept].max()


def test_a_share_of_the_pixels_stays():
    relevance = torch.rand(20, 20, generator=torch.Generator().manual_seed(1))
    for share, count in ((0.25, 100), (1.0, 400), (1e-9, 1)):
        kept = keep_share(relevance, share)
        assert int(kept.sum()) == count
        assert relevance[kept].min() >= (relevance[~kept].max() if count < 400 else 0)


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_answer_alike_in_every_execution_and_as_plain_where_nothing_is_hidden(family, monkeypatch):
    monkeypatch.setitem(family_parts.SLIDING, "sliding_window", 512)
    model, processor = guard(*made(family), focus(beta=0.01))
    prompts = [model._lvlm_guard.family.asked(processor, text, 1) for text in ("What?", "Who is there, and why?")]
    pictures = [[tiny.picture(1, 96, 48)], [tiny.picture(2, 56, 56)]]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(model.dtype)
    outs = [model.generate(**inputs, **WANTED, guard_execution=how) for how in ("lazy", "auto", "batched")]
    assert outs[0].guard.local_forwards > 0
    assert all(torch.equal(out.sequences, outs[0].sequences) for out in outs)
    assert apart(outs[0]) > 1e-4
    whole = model.generate(**inputs, **WANTED, guard=focus(share=1.0, beta=0.01))
    assert apart(whole) < 1e-6
    assert torch.equal(whole.sequences, model.generate(**inputs, **WANTED, guard=False).sequences)


def apart(out):
    """How far the two branches are apart at most, in nats, where both ran."""
    found = [step.divergence for steps in out.guard.steps for step in steps if step.divergence is not None]
    assert len(found) > 4
    return max(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_focus_changes_the_answer_by_what_the_matcher_finds(family):
    pair = guard(*tiny.make(family, scale=4.0), focus())
    model, _ = pair
    inputs = ask(pair, ("What?", 1), ("Who is there?", 2))
    out = model.generate(**inputs, **WANTED)
    assert [match["kept"] for match in out.guard.matches] == [0.25, 0.25]
    assert out.guard.masks == 0  # no second picture is made
    assert out.guard.views[0].match.keep.float().mean() == pytest.approx(0.25, abs=0.02)
    assert out.guard.knobs["matcher"] == "brightness-32"

    class Darkness(Brightness):
        def _map(self, image):
            return 1 - super()._map(image)

    other = model.generate(**inputs, **WANTED, guard=focus(matcher=Darkness()))
    assert not torch.equal(other.sequences, out.sequences)
    whole = model.generate(**inputs, **WANTED, guard=focus(share=1.0))
    assert torch.equal(whole.sequences, model.generate(**inputs, **WANTED, guard=False).sequences)


def test_agla_with_a_share_paints_that_share():
    pair = guard(*tiny.make("llava", scale=4.0), methods.AGLA(matcher=Brightness(), beta=0.05, share=0.25))
    inputs = ask(pair, ("What?", 1))
    out = pair[0].generate(**inputs, **WANTED)
    assert out.guard.matches[0]["kept"] == pytest.approx(0.25, abs=0.02)
    local = np.asarray(out.guard.views[0].local)
    assert (local.any(-1)).mean() == pytest.approx(0.25, abs=0.02)


def test_what_can_not_be_focused_is_refused_with_what_to_do():
    for share in (0, -1, 1.01, float("nan")):
        for method in (methods.Focus, methods.AGLA):
            with pytest.raises(KnobError, match="share"):
                method(share=share)
    pair = guard(*tiny.make("instructblip"), focus())
    inputs = pair[1](images=tiny.picture(1), text="What?", return_tensors="pt").to(torch.float64)
    with pytest.raises(UnsupportedModelError, match=r"not proven right on a InstructBlip.*Use 'agla'"):
        pair[0].generate(**inputs, max_new_tokens=2)
    model, processor = guard(*made("gemma3"), focus())
    inputs = processor(images=[[tiny.picture(1)]], text=[model._lvlm_guard.family.asked(processor, "What?", 1)],
                       return_tensors="pt").to(torch.float64)  # fmt: skip
    for cache in (None, "static"):
        with pytest.raises(UnsupportedCallError, match="its sliding window of 12 tokens"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation=cache)
    pair = guard(*tiny.make("llava"), focus())
    with pytest.raises(UnsupportedCallError, match="Leave guard_images out"):
        pair[0].generate(**ask(pair, ("What?", 1), guard_images=Image.new("RGB", (40, 40))), max_new_tokens=2)
    with pytest.raises(TextError, match="asks nothing"):
        pair[0].generate(**ask(pair, ("What?", 1), guard_text=" "), max_new_tokens=2)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_model_s_own_attention_is_a_map(name):
    model, processor = any_families.make(name, dtype=torch.float32, attention="eager")
    method = methods.Focus(matcher="attention", beta=0.05)
    model, processor = guard(model, processor, method, check="never")
    prompts = [model._lvlm_guard.family.asked(processor, question, 1) for question in ("Is there a dog?", "What?")]
    pictures = [[tiny.picture(1, 64, 64)], [tiny.picture(2, 64, 64)]]
    inputs = processor(images=pictures, text=prompts, padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.dtype)
    plain = {key: value for key, value in inputs.items() if key != "guard_views"}
    with torch.no_grad():
        weights = model(**plain, output_attentions=True).attentions
    seen = torch.stack(weights[len(weights) // 2 :])[:, :, :, -1].mean((0, 2))  # [B, T]
    call = Call(
        model, model._lvlm_guard.family, processor, inputs["guard_views"], None, [True, True], None,
        (inputs["input_ids"], inputs["attention_mask"]), model.dtype,
    )  # fmt: skip
    with within(model, None):
        found = attended(call)
    for row, one in enumerate(found):
        expected = seen[row][inputs["input_ids"][row] == model.config.image_token_id]
        torch.testing.assert_close(one, expected.float(), rtol=1e-4, atol=1e-6)
    run = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    lazy, batched = (model.generate(**inputs, **run, guard_execution=how) for how in ("lazy", "batched"))
    assert torch.equal(lazy, batched)
    assert not torch.equal(lazy, model.generate(**inputs, **run, guard=False))
