"""Pictures of any shape are seen whole, in the frame of `Match.relevance`, whatever the CLIP's own processor does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from lvlm_guard.adapters import load
from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.matchers.clip import ClipMatcher
from lvlm_guard.adapters.retrieval.folder import make, untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import WeightsError
from lvlm_guard.images import squash


def cropping() -> DualPromptRetriever:
    """On a CLIP whose stock processor resizes the shorter side and crops the middle, as OpenAI's does."""
    side = tiny_clip.clip().config.vision_config.image_size
    stock = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    clip = tiny_clip.clip()
    return make(clip, Inputs.of(clip, tokenizer=tiny_clip.tokenizer(), image_processor=stock))


def wide(left: int, width: int = 200, height: int = 100) -> Image.Image:
    """A picture of two to one whose outer quarters, which a crop takes off, have a colour of their own."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[:, : width // 4] = left
    pixels[:, -width // 4 :] = 255 - left
    return Image.fromarray(pixels)


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_what_stands_at_the_edges_of_a_picture_counts(turned: bool) -> None:
    retriever = cropping()
    one, other = (
        picture.transpose(Image.Transpose.ROTATE_90) if turned else picture for picture in map(wide, (0, 255))
    )
    pixels = retriever.image_inputs([one, other])
    assert not torch.equal(pixels[0], pixels[1])
    features = retriever.image_features([one, other])
    assert not torch.allclose(features[0], features[1])


def test_a_picture_is_read_as_its_squashed_square_and_so_is_its_map() -> None:
    matcher = ClipMatcher(untuned())
    square = squash(wide(0), matcher.side, matcher.side)
    (whole,), (small,) = matcher([wide(0)], ["a dog"]), matcher([square], ["a dog"])
    torch.testing.assert_close(whole.relevance, small.relevance)
    assert whole.score == pytest.approx(small.score)


def test_the_frame_is_in_the_card_and_one_from_before_is_refused(tmp_path: Path) -> None:
    card = cropping().save_pretrained(tmp_path)
    told = json.loads(card.read_text())
    assert told["frame"] == "squashed"
    del told["frame"]
    card.write_text(json.dumps(told | {"format": 1}))
    with pytest.raises(WeightsError, match="train the adapter again"):
        load(tmp_path, model=tiny_clip.clip(), inputs=cropping().inputs)
