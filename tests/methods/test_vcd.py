"""VCD's noise: the published schedule, fixed by its seed, a picture's own, and no one else's business."""

import pytest
import tiny
import torch

from lvlm_guard import guard, methods
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.pictures import units
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import KnobError
from lvlm_guard.methods.vcd import kept_share

FACTORS = 0.863017, 0.505175  # of signal and noise at step 500, measured on the authors' code


def noised(family, seeds=(1, 2), **knobs):
    model, processor = guard(*tiny.make(family), "vcd")
    shape = (60, 40)
    text = [tiny.prompt(processor, "What?")] * len(seeds)
    inputs = processor(images=[tiny.picture(seed, *shape) for seed in seeds], text=text, return_tensors="pt")
    chosen = model._lvlm_guard.family
    tensors = {key: inputs[key] for key in chosen.image_keys}
    call = Call(model, chosen, processor, None, tensors, [True] * len(seeds), GuardTrace("vcd", {}, "single", True))
    view = methods.VCD(**knobs).view(call)
    return units(tensors), units(view)


def test_the_schedule_is_the_published_one():
    assert kept_share(500) ** 0.5 == pytest.approx(FACTORS[0], abs=1e-5)
    assert (1 - kept_share(500)) ** 0.5 == pytest.approx(FACTORS[1], abs=1e-5)
    assert kept_share(0) > 0.9999
    assert kept_share(999) < 0.1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_noise_has_the_statistics_of_the_schedule(family):
    clean, noisy = noised(family)
    noise = torch.cat([(n - FACTORS[0] * c).flatten() for c, n in zip(clean, noisy, strict=True)])
    assert noise.std().item() == pytest.approx(FACTORS[1], rel=0.03)
    assert abs(noise.mean().item()) < 0.03


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_noise_is_fixed_by_its_seed_and_leaves_the_sampler_alone(family):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = noised(family, seed=3)[1]
    torch.manual_seed(0)
    again = noised(family, seed=3)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], noised(family, seed=4)[1][0])
    torch.set_rng_state(state)
    before = torch.rand(1)
    torch.set_rng_state(state)
    methods.VCD()
    assert torch.equal(torch.rand(1), before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_picture_has_the_same_noise_in_any_batch_and_another_picture_another(family):
    clean, pair = noised(family, (1, 2))
    _, alone = noised(family, (2,))
    assert torch.equal(pair[1], alone[0])
    assert not torch.allclose(pair[0] - FACTORS[0] * clean[0], pair[1] - FACTORS[0] * clean[1], atol=0.1)


def test_both_time_slices_of_a_still_picture_get_the_same_noise():
    _, noisy = noised("qwen2_5_vl", (1,))
    slices = noisy[0].view(len(noisy[0]), 3, 2, -1)
    assert torch.equal(slices[:, :, 0], slices[:, :, 1])


def test_padding_tiles_of_llava_next_stay_empty():
    model, processor = guard(*tiny.make("llava_next"), "vcd")
    text = [tiny.prompt(processor, "What?")] * 2
    pictures = [tiny.picture(1, 64, 32), tiny.picture(2, 64, 64)]
    inputs = processor(images=pictures, text=text, padding=True, return_tensors="pt")
    family = model._lvlm_guard.family
    tensors = {key: inputs[key] for key in family.image_keys}
    call = Call(model, family, processor, None, tensors, [True, True], GuardTrace("vcd", {}, "single", True))
    view = methods.VCD().view(call)["pixel_values"]
    empty = inputs["pixel_values"].flatten(2).abs().amax(-1) == 0
    assert empty.any()
    assert (view[empty] == 0).all()
    assert (view[~empty] != 0).any()


@pytest.mark.parametrize(
    "knobs", [{"noise_step": 1000}, {"noise_step": -1}, {"noise_step": 1.5}, {"noise_step": 500.0}]
)
def test_knobs_out_of_range_raise(knobs):
    with pytest.raises(KnobError):
        methods.VCD(**knobs)
