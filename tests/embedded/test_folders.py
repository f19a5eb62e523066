"""The two shipped model folders, loaded as anybody would."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, BlipForImageTextRetrieval, LlavaForConditionalGeneration

from embedded_training import accept, build
from lvlm_guard.embedded import MATCHER, MODEL, world
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.questions import pope_set

FOLDERS = {MODEL: LlavaForConditionalGeneration, MATCHER: BlipForImageTextRetrieval}


def names(folder) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return list(weights.keys())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_from_pretrained_finds_every_weight_and_none_too_many(folder) -> None:
    model, info = FOLDERS[folder].from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert model.name_or_path == str(folder)


def test_the_folders_are_small_and_hold_half_precision() -> None:
    assert sum(path.stat().st_size for folder in FOLDERS for path in folder.iterdir()) < 5_000_000
    for folder in FOLDERS:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in list(weights.keys())} == {"F16"}


def test_the_llava_folder_is_what_vllm_reads() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["hidden_size"] // config["text_config"]["num_attention_heads"] == 32
    tower = [name for name in names(MODEL) if name.startswith("vision_tower.")]
    assert tower
    assert all(name.startswith("vision_tower.vision_model.") for name in tower)


def test_the_configs_name_the_matcher_and_how_to_read_it() -> None:
    llava = LlavaForConditionalGeneration.from_pretrained(MODEL)
    assert (MODEL / llava.config.lvlm_guard["matcher"]).resolve() == MATCHER.resolve()
    ids = llava.generation_config
    assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 0)
    guard = BlipForImageTextRetrieval.from_pretrained(MATCHER).config.lvlm_guard
    assert guard["gradcam_layer"] == 0
    slope, offset = guard["platt"]
    assert 0.3 < slope < 3
    assert abs(offset) < 2


@pytest.mark.parametrize(
    ("folder", "made"), [(MODEL, build.llava_processor), (MATCHER, build.blip_processor)], ids=["llava", "blip"]
)
def test_the_saved_processor_is_the_built_one(folder, made) -> None:
    saved, built = AutoProcessor.from_pretrained(folder), made()
    assert type(saved) is type(built)
    assert saved.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert saved.chat_template == built.chat_template
    image = Image.fromarray(world.scenes("val", 1).image[0])
    text = "USER: <image>\nis there a cat ? ASSISTANT:" if folder == MODEL else "is there a cat ?"
    ours, theirs = (p(images=image, text=text, return_tensors="pt") for p in (built, saved))
    assert ours.input_ids.tolist() == theirs.input_ids.tolist()
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_each_folder_has_a_model_card() -> None:
    for folder in FOLDERS:
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "license: apache-2.0" in card
        assert "own world" in card


@pytest.mark.slow
def test_the_folders_pass_their_acceptance() -> None:
    assert accept.main([]) == 0


def test_the_lvlm_and_the_matcher_are_witnesses_that_both_err() -> None:
    torch.set_num_threads(1)
    drawn, questions = pope_set("val", 10)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL).eval()
    processor = AutoProcessor.from_pretrained(MODEL)
    texts = [f"USER: <image>\n{world.question(CLASSES[q.asked])} ASSISTANT:" for q in questions]
    images = [Image.fromarray(drawn.image[q.scene]) for q in questions]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    said = processor.batch_decode(model.generate(**inputs, max_new_tokens=4)[:, -2:], skip_special_tokens=True)
    assert set(said) == {"yes", "no"}
    present = np.array([q.present for q in questions])
    assert 0.6 < ((np.array(said) == "yes") == present).mean() < 0.95
    matcher = BlipForImageTextRetrieval.from_pretrained(MATCHER).eval()
    tokenizer = AutoProcessor.from_pretrained(MATCHER).tokenizer
    logits = accept.matcher_logits(matcher, tokenizer, drawn, [(q.scene, q.asked) for q in questions])
    assert 0.6 < ((logits > 0) == present).mean() < 0.95
