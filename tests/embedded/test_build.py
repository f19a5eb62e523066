"""Tokenizers, processors, chat template, and the attention that training computes block by block."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedded_training import build
from embedded_training.segments import attend
from lvlm_guard.embedded import world
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.text import caption, question


@pytest.fixture(scope="module")
def drawn() -> world.Scenes:
    return world.scenes("val", 3)


@pytest.mark.parametrize("make", [build.llava_processor, build.blip_processor])
def test_the_processor_gives_the_tensors_of_training(make, drawn: world.Scenes) -> None:
    images = [Image.fromarray(image) for image in drawn.image]
    texts = ["<image>" if make is build.llava_processor else question("dog")] * 3
    made = make()(images=images, text=texts, return_tensors="pt", padding=True).pixel_values
    torch.testing.assert_close(made, build.pixels(drawn.image), rtol=0, atol=1e-6)


def test_every_word_of_the_world_has_a_token() -> None:
    texts = [*(question(name) for name in CLASSES), caption(CLASSES), caption([]), world.CAPTION_PROMPT, "yes no"]
    for tokenizer in (build.llava_tokenizer(), build.blip_tokenizer()):
        for text in texts:
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_the_matcher_has_an_enc_token_and_begins_with_cls() -> None:
    tokenizer = build.blip_tokenizer()
    ids = tokenizer("is there a dog in the image ?").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
    assert tokenizer.convert_tokens_to_ids("[ENC]") not in (*ids, tokenizer.unk_token_id)


def test_a_prompt_reads_as_in_training() -> None:
    processor = build.llava_processor()
    image = Image.fromarray(np.zeros((96, 96, 3), np.uint8))
    prompt = "USER: <image>\nIs there a dog in the image? ASSISTANT:"
    ids = processor(images=image, text=prompt, return_tensors="pt").input_ids[0]
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    asked = "is there a dog in the image ? assistant :"
    assert words == ["<s>", "user", ":", *["<image>"] * 36, *asked.split()]


def turn(role: str, text: str, images: int = 0) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}, *({"type": "image"} for _ in range(images))]}


def test_the_chat_template_puts_pictures_first_and_keeps_turns_apart() -> None:
    processor = build.llava_processor()
    assert (
        processor.apply_chat_template([turn("user", "is there a dog ?", 1)], add_generation_prompt=True)
        == "USER: <image>\nis there a dog ? ASSISTANT:"
    )
    several = [turn("system", "be brief ."), turn("user", "a", 2), turn("assistant", "yes"), turn("user", "and ?")]
    assert (
        processor.apply_chat_template(several, add_generation_prompt=True)
        == "be brief . USER: <image>\n<image>\na ASSISTANT: yes USER: and ? ASSISTANT:"
    )
    plain = [{"role": "user", "content": "no picture ."}]
    assert processor.apply_chat_template(plain, add_generation_prompt=True) == "USER: no picture . ASSISTANT:"


def test_the_chat_template_tokenises_to_what_the_written_prompt_gives(drawn: world.Scenes) -> None:
    processor = build.llava_processor()
    image = Image.fromarray(drawn.image[0])
    message = turn("user", "is there a cat in the image ?")
    message["content"].insert(0, {"type": "image", "image": image})
    chat = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = processor(
        images=image, text="USER: <image>\nis there a cat in the image ? ASSISTANT:", return_tensors="pt"
    )
    assert chat.input_ids.tolist() == written.input_ids.tolist()
    assert torch.equal(chat.pixel_values, written.pixel_values)


@settings(max_examples=20, deadline=None)
@given(
    prefix=st.integers(1, 7),
    groups=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_attention_by_segments_equals_dense_attention_under_the_block_mask(prefix, groups, seed) -> None:
    length = prefix + sum(count * width for count, width in groups)
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, length, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    segment = [0] * prefix
    for count, width in groups:
        for _ in range(count):
            segment += [max(segment) + 1] * width
    of = torch.tensor(segment)
    seen = (of[:, None] == of[None]) | (of[None] == 0)
    seen &= torch.ones(length, length).tril().bool()
    dense = torch.softmax((q @ k.transpose(-1, -2) * 0.3).masked_fill(~seen, -torch.inf), -1) @ v
    torch.testing.assert_close(attend(q, k, v, 0.3, groups, prefix), dense, rtol=1e-5, atol=1e-6)
