"""The arithmetic from attention to mask, against the golden values, SciPy, scikit-image and Pillow."""

import base64
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.transform import resize

from lvlm_guard.errors import ImageError, LogitsError
from lvlm_guard.matching import Match, keep_mask, local_view
from lvlm_guard.matching.relevance import gradcam, heat_map, keep_index, share_on_class

GOLDEN = json.loads((Path(__file__).parents[1] / "data/agla/golden.json").read_text())
PIXELS = 384 * 384


def golden_map():
    place = np.arange(576).reshape(24, 24)
    return torch.tensor((((7919 * place + 104729) % 65536) / 65536).astype(np.float32))


@pytest.fixture(scope="module")
def final():
    return heat_map(golden_map()[None], 384)[0]


def reference_map(cam, side):
    """The release's heat map, step by step, with SciPy."""
    unit = cam - cam.min()
    unit = unit / unit.max() if unit.max() > 0 else unit
    fine = ndimage.zoom(unit, side / len(cam), order=3, mode="grid-constant", cval=0, grid_mode=True)
    soft = ndimage.gaussian_filter(np.clip(fine, unit.min(), unit.max()), 0.02 * side)
    soft = soft - soft.min()
    return soft / soft.max()


# --- GradCAM


@pytest.mark.parametrize("case", GOLDEN["gradcam"]["cases"], ids=lambda case: f"{sum(case['attention_mask'])} tokens")
def test_gradcam_gives_the_golden_values(case):
    h, t, p = np.ogrid[:12, :7, :577]
    attention = torch.tensor(((31 * h + 17 * t + 7 * p) % 101) / 101).float()[None]
    gradient = torch.tensor(((13 * h + 29 * t + 3 * p) % 97) / 97 - 0.5).float()[None]
    cam = gradcam(attention, gradient, torch.tensor([case["attention_mask"]]))[0]
    assert cam.shape == (24, 24)
    assert float(cam.sum()) == pytest.approx(case["sum"], abs=2e-4)
    assert [float(cam.min()), float(cam.max())] == pytest.approx([case["min"], case["max"]], abs=2e-5)
    assert list(np.unravel_index(int(cam.argmax()), cam.shape)) == case["argmax"]
    for place, value in case["values"].items():
        assert float(cam[tuple(map(int, place.split(",")))]) == pytest.approx(value, abs=2e-5)
    assert float(heat_map(cam[None], 384).mean()) == pytest.approx(case["final_map_mean"], abs=2e-5)


def test_gradcam_of_half_precision_is_computed_in_float32():
    attention, gradient = torch.rand(1, 2, 5, 10).bfloat16(), torch.randn(1, 2, 5, 10).bfloat16()
    mask = torch.ones(1, 5, dtype=torch.long)
    assert torch.equal(gradcam(attention, gradient, mask), gradcam(attention.float(), gradient.float(), mask))


def test_the_share_on_the_class_column_counts_content_tokens_alone():
    attention = torch.zeros(1, 2, 5, 10)
    attention[:, :, 0, 0] = attention[:, :, 3, 0] = 1  # the two specials of a text of four tokens
    attention[:, :, 1, 0] = 0.6
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert share_on_class(attention, mask).tolist() == pytest.approx([0.3])


# --- heat map


def test_the_heat_map_gives_the_golden_values(final):
    golden = GOLDEN["relevance"]["final"]
    assert float(golden_map().sum()) == pytest.approx(GOLDEN["relevance"]["M_sum"], abs=1e-4)
    for place, value in golden["points"].items():
        assert float(final[tuple(map(int, place.split(",")))]) == pytest.approx(value, abs=2e-5)
    every = final[8::16, 8::16].numpy()
    np.testing.assert_allclose(every, golden["every_16th_from_8"], atol=2e-5)
    assert [float(final.mean()), float(final.std(correction=0))] == pytest.approx(
        [golden["mean"], golden["std"]], abs=2e-5
    )
    assert list(np.unravel_index(int(final.argmax()), final.shape)) == golden["argmax"]
    assert list(np.unravel_index(int(final.argmin()), final.shape)) == golden["argmin"]


def test_one_hot_cell_gives_the_golden_bump():
    cam = torch.zeros(1, 24, 24)
    cam[0, 3, 5] = 1
    bump = heat_map(cam, 384)[0]
    for place, value in GOLDEN["delta_map"]["points"].items():
        assert float(bump[tuple(map(int, place.split(",")))]) == pytest.approx(value, abs=2e-5)
    assert float(bump.mean()) == pytest.approx(GOLDEN["delta_map"]["mean"], abs=2e-5)


@pytest.mark.parametrize(("cells", "side"), [(24, 384), (6, 96), (2, 16), (9, 63)])
def test_a_batch_of_heat_maps_equals_scipy_map_by_map(cells, side):
    cams = torch.rand(3, cells, cells, generator=torch.Generator().manual_seed(cells)) ** 3
    maps = heat_map(cams, side)
    for cam, ours in zip(cams.numpy(), maps.numpy(), strict=True):
        np.testing.assert_allclose(ours, reference_map(cam, side), atol=1e-5)


def test_the_spline_is_that_of_scikit_image():
    cam = golden_map().numpy()
    ours = ndimage.zoom(cam, 16, order=3, mode="grid-constant", cval=0, grid_mode=True)
    theirs = resize(cam, (384, 384), order=3, mode="constant", clip=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1e-30])
def test_a_constant_map_keeps_every_pixel_and_leaks_neither_nan_nor_warning(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = heat_map(torch.full((1, 24, 24), value), 384)[0]
        assert torch.isfinite(flat).all()
        assert int(keep_mask(flat, 0.9).sum()) == PIXELS


def test_a_constant_map_leaves_its_neighbours_in_the_batch_alone():
    both = heat_map(torch.stack([torch.ones(24, 24), golden_map()]), 384)
    torch.testing.assert_close(both[1], heat_map(golden_map()[None], 384)[0])
    assert bool((both[0] == 1).all())


def test_a_map_with_nan_is_an_error_that_names_the_number_format():
    with pytest.raises(LogitsError, match="float32"):
        heat_map(torch.full((1, 24, 24), float("nan")), 384)


def test_a_heat_map_made_in_inference_mode_does_not_spoil_later_ones():
    with torch.inference_mode():
        heat_map(torch.rand(1, 5, 5), 40)
    cam = torch.rand(1, 5, 5, requires_grad=True)
    heat_map(cam, 40).sum().backward()
    assert cam.grad is not None


# --- mask and picture


@pytest.mark.parametrize("golden", GOLDEN["masks"], ids=lambda golden: f"itc {golden['itc']}")
def test_the_mask_keeps_the_golden_number_of_pixels(golden, final):
    keep = keep_mask(final, golden["itc"])
    index = keep_index(golden["itc"], PIXELS)
    assert index == golden["index"]
    assert float(final.flatten().sort(descending=True).values[index]) == pytest.approx(golden["threshold"], abs=2e-5)
    assert int(keep.sum()) == golden["kept"]
    for row, kept in golden["kept_in_rows"].items():
        assert abs(int(keep[int(row)].sum()) - kept) <= 2


def test_the_whole_golden_mask_is_met_within_twenty_pixels(final):
    packed = np.frombuffer(base64.b64decode(GOLDEN["mask_bits_itc_0.4321"]["data"]), np.uint8)
    theirs = np.unpackbits(packed).reshape(384, 384).astype(bool)
    assert int((keep_mask(final, 0.4321).numpy() != theirs).sum()) <= 20


def golden_picture():
    y, x = np.mgrid[:375, :500]
    return Image.fromarray(np.stack([x * 255 // 499, y * 255 // 374, (x + y) % 256], -1).astype(np.uint8))


def test_the_masked_picture_gives_the_golden_sums(final):
    golden = GOLDEN["mask_image"]
    view = local_view(golden_picture(), Match(final, 0.4321))
    assert view.mode == "RGB"
    assert view.size == (384, 384)
    sums = np.asarray(view).reshape(-1, 3).sum(0)
    np.testing.assert_allclose(sums, [14553477, 14701069, 14780572], rtol=1e-3)
    whole = np.asarray(local_view(golden_picture(), Match(torch.ones(384, 384), 0.4321)))
    np.testing.assert_allclose(whole.reshape(-1, 3).sum(0), golden["resized_384_bicubic_channel_sums"], rtol=1e-3)
    for place, colour in golden["resized_pixels"].items():
        assert np.abs(whole[tuple(map(int, place.split(",")))].astype(int) - colour).max() <= 1


def test_dropped_pixels_are_black_and_the_others_as_they_were(final):
    match = Match(final, 0.4321)
    view, squashed = np.asarray(local_view(golden_picture(), match)), np.asarray(golden_picture().resize((384, 384), 3))
    keep = match.keep.numpy()
    assert (view[~keep] == 0).all()
    assert (view[keep] == squashed[keep]).all()


def test_the_original_frame_keeps_the_pictures_size_and_about_the_same_share(final):
    match = Match(final, 0.5)
    view = local_view(golden_picture(), match, "original")
    assert view.size == (500, 375)
    original = np.asarray(golden_picture())
    kept = (np.asarray(view) == original).all(-1)
    assert kept.mean() == pytest.approx(float(match.keep.float().mean()), abs=0.01)


@given(st.integers(2, 40), st.integers(2, 40), st.floats(-1, 1), st.integers(0, 2**31))
def test_exactly_one_pixel_more_than_the_index_is_kept_where_no_values_tie(h, w, score, seed):
    relevance = torch.randperm(h * w, generator=torch.Generator().manual_seed(seed)).view(h, w) / (h * w)
    keep = keep_mask(relevance, score)
    assert int(keep.sum()) == keep_index(score, h * w) + 1
    assert float(relevance[keep].min()) > float(relevance[~keep].max()) if (~keep).any() else True


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 2**31))
def test_a_higher_score_keeps_a_subset(one, other, seed):
    low, high = sorted((one, other))
    relevance = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    assert not bool((keep_mask(relevance, high) & ~keep_mask(relevance, low)).any())


@given(st.floats(allow_nan=False), st.integers(1, 10**6))
def test_any_score_gives_an_index_within_the_picture(score, pixels):
    assert 0 <= keep_index(score, pixels) < pixels


def test_a_map_or_a_score_that_is_nan_is_a_clear_error():
    with pytest.raises(ImageError, match="NaN"):
        keep_mask(torch.full((2, 2), float("nan")), 0.5)
    with pytest.raises(LogitsError, match="NaN"):
        keep_mask(torch.rand(2, 2), float("nan"))
