"""RITUAL: its transforms on pictures whose answer is known, its draw, and its figures."""

from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from lvlm_guard import guard, methods
from lvlm_guard.engine.method import Step
from lvlm_guard.methods.ritual import TRANSFORMS, transformed

PICTURE = tiny.picture(4, 60, 40)


def test_golden_figures():
    l, other = torch.tensor([[2.0, 1.8, 0.0, -1.0]]), torch.tensor([[2.5, 1.0, 0.5, -3.0]])  # noqa: E741
    step = Step(l, l, torch.tensor([1]), [0], lambda row: [], None)
    found = methods.RITUAL().assemble(step, (other,))
    assert found[0, :3].tolist() == pytest.approx([9.5, 4.8, 1.5])
    assert found.softmax(-1)[0].tolist() == pytest.approx([0.990657, 0.009010, 0.000332, 0.0], abs=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_transform_keeps_the_size_and_changes_the_picture_as_its_seed_says(kind):
    first, told = transformed(PICTURE, 0, kind)
    assert (first.size, first.mode, told) == (PICTURE.size, "RGB", kind)
    assert first.tobytes() != PICTURE.tobytes()
    assert first.tobytes() == transformed(PICTURE, 0, kind)[0].tobytes()
    assert ("flip" in kind or "down" in kind) == (first.tobytes() == transformed(PICTURE, 1, kind)[0].tobytes())


def test_flips_are_flips_and_blur_leaves_an_even_picture_alone():
    pixels = np.asarray(PICTURE)
    assert np.array_equal(np.asarray(transformed(PICTURE, 0, "flipped")[0]), pixels[:, ::-1])
    assert np.array_equal(np.asarray(transformed(PICTURE, 0, "upside down")[0]), pixels[::-1])
    grey = Image.new("RGB", (30, 20), (90, 90, 90))
    assert transformed(grey, 0, "blurred")[0].tobytes() == grey.tobytes()
    assert transformed(grey, 0, "cropped")[0].tobytes() == grey.tobytes()
    assert np.asarray(transformed(grey, 0, "rotated")[0])[10, 15].tolist() == [90, 90, 90]


def test_each_transform_is_drawn_as_often():
    drawn = Counter(transformed(PICTURE, seed)[1] for seed in range(600))
    assert set(drawn) == set(TRANSFORMS)
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) < 20.5  # chi-squared, 5 degrees, p = .001


def test_the_draw_is_in_the_trace_and_leaves_the_sampler_alone():
    model, processor = guard(*tiny.make("llava", scale=3.0), "ritual", beta=0.0)
    inputs = processor(images=PICTURE, text=tiny.prompt(processor, "What?"), return_tensors="pt").to(torch.float64)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert f"Picture 0 was {transformed(PICTURE, 0)[1]} for the second branch." in out.guard.notes
    assert out.guard.views[0].local.tobytes() == transformed(PICTURE, 0)[0].tobytes()
