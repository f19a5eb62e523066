"""The matcher on a tiny random BLIP, against an independent full-backward reference."""

import threading

import numpy as np
import pytest
import torch
from blips import MEAN, STD, blip_matcher, blip_model, blip_tokenizer
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor, LlamaConfig

from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError, WeightsError
from lvlm_guard.matching import BlipITM
from lvlm_guard.matching.relevance import heat_map

TEXTS = [
    "Is there a dog in the image?",
    "dog",
    "Please describe this image in detail.",
    "Is there a car, a cat, a dog and/or a carrot in this image? Yes/no",
]


def picture(seed=0, size=(40, 30)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def reference(model, tokenizer, image, text, layer, first):
    """Map, ITM probability and ITC cosine of one pair, the slow way: eager weights, a whole backward pass."""
    model.requires_grad_(True)
    side = model.config.vision_config.image_size
    pixels = torch.tensor(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))) / 255
    pixels = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None].to(model.dtype)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :35]
    cosine = model(input_ids=ids, pixel_values=pixels, use_itm_head=False).itm_score.item()
    ids = ids.clone()
    ids[:, 0] = first
    seen = []
    dropout = model.text_encoder.encoder.layer[layer].crossattention.self.dropout
    hook = dropout.register_forward_pre_hook(lambda _, args: seen.append(args[0]) or args[0].retain_grad())
    logits = model(input_ids=ids, pixel_values=pixels).itm_score
    hook.remove()
    logits[0, 1].backward()
    attention, gradient = seen[0][0].detach(), seen[0].grad[0]
    n, cam = ids.shape[1], 0
    for token in range(1, n - 1):
        for head in range(attention.shape[0]):
            cam = cam + gradient[head, token, 1:].clamp(min=0) * attention[head, token, 1:] / attention.shape[0]
    grid = int(attention.shape[-1] ** 0.5)
    model.zero_grad()
    model.requires_grad_(False)
    return (cam / (n - 2)).view(grid, grid), logits.softmax(-1)[0, 1].item(), cosine


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("enc", [True, False])
def test_map_and_score_equal_a_full_backward_pass(layer, enc):
    matcher = blip_matcher(enc, layer)
    first = 4 if enc else 39  # [ENC] by name, else the last row of the embedding
    for seed, text in enumerate(TEXTS[:2]):
        cam, _, cosine = reference(blip_model(), blip_tokenizer(enc), picture(seed), text.lower(), layer, first)
        match = matcher([picture(seed)], [text])[0]
        assert match.relevance.shape == (32, 32)
        torch.testing.assert_close(match.relevance, heat_map(cam[None], 32)[0], atol=1e-4, rtol=0)
        assert match.score == pytest.approx(cosine, abs=1e-5)
        assert 0 < match.share_on_class < 1


def test_support_equals_the_softmax_of_the_models_own_head():
    matcher = blip_matcher()
    claims = ["is there a dog in the image?", "is there a cat in the image?", "car"]
    ours = matcher.support(picture(), claims)
    theirs = [reference(blip_model(), blip_tokenizer(), picture(), claim, 0, 4)[1] for claim in claims]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-5)
    assert ours.std() > 1e-3


def test_platt_scaling_in_the_config_calibrates_support():
    plain = blip_matcher().support(picture(), ["dog", "cat"])
    model = blip_model()
    model.config.lvlm_guard = {"platt": [0.5, -0.25]}
    scaled = BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD).support(picture(), ["dog", "cat"])
    torch.testing.assert_close(scaled, torch.sigmoid(0.5 * torch.logit(plain) - 0.25))


def test_support_stays_within_zero_and_one_where_the_head_is_certain():
    model = blip_model()
    model.itm_head.weight.data.mul_(1e4)
    p = BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD).support(picture(), ["dog", "cat", "car"])
    assert bool(((p > 0) & (p < 1)).all())


def test_a_batch_of_unequal_texts_equals_each_pair_alone():
    images = [picture(i % 2) for i in range(4)]
    together = blip_matcher()(images, TEXTS)
    for image, text, match in zip(images, TEXTS, together, strict=True):
        alone = blip_matcher()([image], [text])[0]
        torch.testing.assert_close(match.relevance, alone.relevance, atol=1e-4, rtol=0)
        assert match.score == pytest.approx(alone.score, abs=1e-5)
        assert match.share_on_class == pytest.approx(alone.share_on_class, abs=1e-5)
    claims = blip_matcher().support_pairs(images, TEXTS)
    alone = [float(blip_matcher().support(image, [text])) for image, text in zip(images, TEXTS, strict=True)]
    assert claims.tolist() == pytest.approx(alone, abs=1e-5)


def counted(module):
    rows = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(next(iter([*args, *kwargs.values()])))), with_kwargs=True
    )
    return rows


def test_each_distinct_picture_is_encoded_once_and_each_distinct_pair_matched_once():
    matcher = blip_matcher()
    tower, text = counted(matcher.model.vision_model), counted(matcher.model.text_encoder)
    matcher([picture(0), picture(1), picture(0)], [TEXTS[0], TEXTS[0], TEXTS[0]])
    assert tower == [2]
    assert text == [2, 1]  # two pairs through the matching head, one text for the cosine
    matcher([picture(1), picture(0)], [TEXTS[0], "IS THERE A DOG IN THE IMAGE?"])
    assert (tower, text) == ([2], [2, 1])
    matcher([picture(0)], [TEXTS[1]])
    assert tower == [2]


def test_claims_about_one_picture_share_one_encoding_and_each_is_scored_once():
    matcher = blip_matcher()
    tower, text = counted(matcher.model.vision_model), counted(matcher.model.text_encoder)
    first = matcher.support(picture(), ["dog", "cat", "dog"])
    assert first[0] == first[2]
    again = matcher.support(picture(), ["cat", "car", "dog"])
    assert tower == [1]
    assert text == [2, 1]
    assert [float(again[2]), float(again[0])] == first[:2].tolist()


def test_a_match_made_inside_inference_mode_and_autocast_is_the_same_and_shuts_neither_off():
    plain = blip_matcher()([picture()], TEXTS[:1])[0]
    inside = blip_matcher()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        match = inside([picture()], TEXTS[:1])[0]
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(match.relevance, plain.relevance)
    assert match.score == plain.score
    later = inside([picture()], TEXTS[1:2])[0]  # image states made inside serve a gradient outside
    torch.testing.assert_close(later.relevance, blip_matcher()([picture()], TEXTS[1:2])[0].relevance)


def test_the_models_weights_gather_no_gradient_and_the_callers_gradient_mode_stays():
    matcher = blip_matcher()
    with torch.no_grad():
        matcher([picture()], TEXTS[:1])
        assert not torch.is_grad_enabled()
    assert all(weight.grad is None and not weight.requires_grad for weight in matcher.model.parameters())


def test_threads_share_a_matcher_without_mixing_their_attention():
    matcher = blip_matcher()
    jobs = [(picture(i), TEXTS[i % 4]) for i in range(12)]
    expected = [blip_matcher()([image], [text])[0] for image, text in jobs]
    results = {}

    def work(part):
        for index in range(part, len(jobs), 4):
            image, text = jobs[index]
            results[index] = (matcher([image], [text])[0], matcher.support(image, [text]))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, match in enumerate(expected):
        torch.testing.assert_close(results[index][0].relevance, match.relevance, atol=1e-4, rtol=0)
        assert results[index][0].score == pytest.approx(match.score, abs=1e-5)


def test_bfloat16_gives_about_the_same_scores():
    matcher = BlipITM(blip_model().bfloat16(), blip_tokenizer(), mean=MEAN, std=STD)
    match, exact = matcher([picture()], TEXTS[:1])[0], blip_matcher()([picture()], TEXTS[:1])[0]
    assert match.relevance.dtype == torch.float32
    assert match.score == pytest.approx(exact.score, abs=0.1)
    assert "bfloat16" in matcher.version


def test_a_map_on_the_class_column_carries_a_note():
    model = blip_model()
    with torch.no_grad():  # keys that answer to nothing: the class token, made large, takes the attention
        model.vision_model.post_layernorm.bias.zero_()
        for layer in model.text_encoder.encoder.layer:
            layer.crossattention.self.query.weight.zero_()
            layer.crossattention.self.query.bias.fill_(3.0)
            layer.crossattention.self.key.weight.zero_()
    matcher = BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD)
    assert matcher([picture()], ["dog"])[0].note is None

    def favour(module, args, output):
        output = output.clone()
        output[:, 0] += 9
        return output

    matcher.model.text_encoder.encoder.layer[matcher.layer].crossattention.self.key.register_forward_hook(favour)
    match = matcher([picture()], ["cat"])[0]
    assert match.share_on_class > 0.9
    assert "class token" in match.note


def test_a_constant_map_keeps_everything_and_says_so():
    model = blip_model()
    model.itm_head.weight.data.zero_()
    match = BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD)([picture()], ["dog"])[0]
    assert bool(match.keep.all())
    assert "constant" in match.note


def test_a_long_text_is_cut_with_a_note_and_an_empty_one_is_an_error():
    matcher = blip_matcher()
    long = " ".join(["dog"] * 45)
    match = matcher([picture()], [long])[0]
    assert "47 pieces" in match.note
    same = matcher([picture()], [" ".join(["dog"] * 33)])[0]
    assert torch.equal(match.relevance, same.relevance)
    with pytest.raises(TextError):
        matcher([picture()], ["..."])
    with pytest.raises(TextError):
        matcher.support(picture(), ["dog", " "])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_mode_and_size_of_picture_is_matched(mode):
    match = blip_matcher()([picture(3, (7, 101)).convert(mode)], ["dog"])[0]
    assert torch.isfinite(match.relevance).all()


# --- which layer


@pytest.mark.parametrize(("layers", "layer"), [(12, 6), (6, 3), (4, 2), (3, 1), (2, 0)])
def test_without_a_choice_the_middle_layer_makes_the_map(layers, layer):
    assert blip_matcher(layers=layers).layer == layer


def test_the_config_may_choose_the_layer_and_the_caller_before_it():
    model = blip_model()
    model.config.lvlm_guard = {"gradcam_layer": 0}
    assert BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD).layer == 0
    assert BlipITM(model, blip_tokenizer(), mean=MEAN, std=STD, layer=1).layer == 1


@pytest.mark.parametrize("layer", [3, 4, -1, "2"])
def test_the_last_layer_and_none_of_the_models_are_refused(layer):
    with pytest.raises(KnobError, match="last"):
        blip_matcher(layer=layer)


def test_models_whose_map_would_be_constant_are_refused():
    with pytest.raises(UnsupportedModelError, match="constant"):
        blip_matcher(layers=1)
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        blip_matcher(is_decoder=False)


# --- folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("blips") / "tiny-blip"
    model = blip_model()
    model.config.lvlm_guard = {"gradcam_layer": 1, "platt": [0.5, -0.25]}
    model.half().save_pretrained(place)
    pixels = BlipImageProcessor(size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD))
    BlipProcessor(pixels, blip_tokenizer()).save_pretrained(place)
    return place


def test_a_saved_folder_loads_in_float32_with_its_layer_scaling_and_pixel_statistics(folder):
    matcher = BlipITM.from_pretrained(folder)
    assert matcher.model.dtype == torch.float32
    assert (matcher.layer, matcher.platt) == (1, (0.5, -0.25))
    match = matcher([picture()], TEXTS[:1])[0]
    by_hand = blip_matcher(layer=1)
    by_hand.model.half().float()
    again = by_hand([picture()], TEXTS[:1])[0]
    torch.testing.assert_close(match.relevance, again.relevance, atol=1e-4, rtol=0)


def test_a_matcher_may_be_loaded_inside_inference_mode(folder):
    with torch.inference_mode():
        matcher = BlipITM.from_pretrained(folder)
        match = matcher([picture()], TEXTS[:1])[0]
    assert torch.equal(match.relevance, BlipITM.from_pretrained(folder)([picture()], TEXTS[:1])[0].relevance)


def test_the_version_tells_weights_layers_and_dtypes_apart_and_names_no_path(folder):
    one, same = BlipITM.from_pretrained(folder), BlipITM.from_pretrained(str(folder))
    assert one.version == same.version
    assert str(folder.parent) not in one.version
    others = {
        BlipITM.from_pretrained(folder, layer=0).version,
        BlipITM.from_pretrained(folder, dtype=torch.bfloat16).version,
        blip_matcher(seed=5).version,
        one.version,
    }
    assert len(others) == 4


def test_a_matcher_in_float16_is_refused(folder):
    with pytest.raises(KnobError, match="float32"):
        BlipITM.from_pretrained(folder, dtype=torch.float16)


def test_a_folder_that_is_missing_or_damaged_is_an_error_that_says_how_to_fetch_one(folder, tmp_path):
    with pytest.raises(WeightsError, match="hf download Salesforce/blip-itm-large-coco"):
        BlipITM.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="hf download"):
        BlipITM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="damaged"):
        BlipITM.from_pretrained(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match="llama"):
        BlipITM.from_pretrained(tmp_path / "llama")


def test_a_captioning_blip_is_refused_because_its_matching_head_would_be_random(tmp_path):
    BlipForConditionalGeneration(blip_model().config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="matching head"):
        BlipITM.from_pretrained(tmp_path)


def test_at_the_papers_sizes_the_map_comes_from_layer_6_of_12_over_24_by_24_patches():
    tokenizer = blip_tokenizer(enc=False)
    tokenizer.add_tokens([f"[unused{i}]" for i in range(30522 - len(tokenizer))])
    sizes = {"layers": 12, "side": 384, "patch": 16, "vocab_size": 30524, "hidden_size": 24, "num_attention_heads": 12}
    matcher = BlipITM(blip_model(**sizes), tokenizer, mean=MEAN, std=STD)
    assert (matcher.first, matcher.layer, matcher.side) == (30523, 6, 384)
    match = matcher([picture(0, (64, 48))], TEXTS[:1])[0]
    cam, _, cosine = reference(blip_model(**sizes), tokenizer, picture(0, (64, 48)), TEXTS[0], 6, 30523)
    assert cam.shape == (24, 24)
    assert match.score == pytest.approx(cosine, abs=1e-5)
    torch.testing.assert_close(match.relevance, heat_map(cam[None], 384)[0], atol=1e-3, rtol=0)
