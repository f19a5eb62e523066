"""`clip` and `dual-prompt`: maps against a plain computation of them, probabilities, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from PIL import Image

from lvlm_guard.adapters.loading import TINY
from lvlm_guard.adapters.matchers import caption_of, object_of, objects_in
from lvlm_guard.adapters.matchers.clip import ClipMatcher, DualPromptMatcher
from lvlm_guard.adapters.retrieval.folder import Memory, untuned
from lvlm_guard.errors import TextError, UnsupportedCallError
from lvlm_guard.matching import load_matcher
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.matching.vocabulary import Vocabulary
from lvlm_guard.verify.check import verify

CASES = ["clip_matcher", "dual_matcher"]


@pytest.fixture(params=CASES)
def matcher(request: pytest.FixtureRequest) -> ClipMatcher:
    found: ClipMatcher = request.getfixturevalue(request.param)
    found.forget()
    return found


def test_a_folder_has_one_version_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copytree(TINY, tmp_path / "mine")
    (tmp_path / "latest").symlink_to("mine")
    monkeypatch.chdir(tmp_path)
    here = load_matcher("latest")
    assert here.version == ClipMatcher.from_pretrained(tmp_path / "mine").version
    assert load_matcher(tmp_path / "mine", dtype=torch.bfloat16) is here  # which a BLIP alone can be loaded in


@pytest.mark.parametrize("layers", [1, 3, 9])
def test_the_map_is_the_rectified_gradient_times_attention_layer_by_layer(
    matcher: ClipMatcher, images: list[Image.Image], layers: int
) -> None:
    matcher = type(matcher)(matcher.retriever, layers=layers)
    (match,) = matcher(images[:1], ["a photo of a dog"])
    model, retriever = matcher.retriever.model, matcher.retriever
    inputs = retriever.text_inputs(["a photo of a dog"])
    text = model.encode_text(inputs.input_ids, inputs.attention_mask).detach()
    pixels = retriever.image_inputs(images[:1]).requires_grad_()
    seen = model.base.vision_model(pixel_values=pixels, output_attentions=True)
    image = torch.nn.functional.normalize(model.base.visual_projection(seen.pooler_output), dim=-1)
    # Chefer et al., equation 6: R starts as the identity, and R = R + A R from layer to layer
    tokens = seen.attentions[0].shape[-1]
    relevance = torch.eye(tokens)
    slopes = torch.autograd.grad((image @ text.T).sum(), seen.attentions)
    for attention, slope in list(zip(seen.attentions, slopes, strict=True))[-layers:]:
        through = (slope * attention).clamp(min=0).mean(1)[0].detach()
        relevance = relevance + through @ relevance
        relevance[65:] = torch.eye(tokens)[65:]  # of prompts, which show nothing
    cam = relevance[0, 1:65].view(1, 8, 8)
    assert torch.allclose(match.relevance, heat_map(cam, 96)[0], atol=1e-3)
    cosine = float((image @ text.T).detach())
    assert match.score == pytest.approx(torch.sigmoid(torch.tensor(9.0 * cosine - 2.5)).item(), abs=1e-5)


def test_maps_have_the_pictures_square_and_span_nought_to_one(matcher: ClipMatcher, images: list[Image.Image]) -> None:
    for match in matcher(images, ["a photo of a dog"] * 3):
        assert match.relevance.shape == (96, 96)
        assert float(match.relevance.min()) == 0.0
        assert float(match.relevance.max()) == 1.0
        assert match.note is None
        assert 0 < match.score < 1


def test_a_pair_matches_alike_alone_and_among_others(matcher: ClipMatcher, images: list[Image.Image]) -> None:
    texts = ["a photo of a dog", "is there a cat in the image ?", "two red cars"]
    together = matcher(images, texts)
    matcher.forget()
    for image, text, match in zip(images, texts, together, strict=True):
        (alone,) = matcher([image], [text])
        assert alone.score == pytest.approx(match.score, abs=1e-5)
        assert torch.allclose(alone.relevance, match.relevance, atol=1e-3)


def test_claims_about_a_picture_that_has_a_map_need_the_tower_no_more(
    matcher: ClipMatcher, images: list[Image.Image]
) -> None:
    claims = ["a photo of a dog", "a photo of a bus"]
    matcher.forget()
    alone = matcher.support(images[0], claims)
    matcher.forget()
    passes: list[None] = []
    hook = matcher.retriever.model.base.vision_model.register_forward_pre_hook(lambda *_: passes.append(None))
    matcher(images[:1], claims[:1])
    after = matcher.support(images[0], claims)
    hook.remove()
    assert len(passes) == 1
    assert torch.allclose(after, alone, atol=1e-5)


def test_a_question_is_read_as_its_caption(matcher: ClipMatcher, images: list[Image.Image]) -> None:
    asked, said = matcher([images[0]] * 2, ["Is there an apple in the image?", "a photo of an apple"])
    assert asked.score == said.score


def test_support_is_the_calibrated_cosine_pair_by_pair(matcher: ClipMatcher, images: list[Image.Image]) -> None:
    claims = ["a photo of a dog", "a photo of a bus", "a photo of a cup"]
    cosines = matcher.similarity(images, claims)
    assert cosines.shape == (3, 3)
    assert torch.allclose(matcher.support(images[1], claims), torch.sigmoid(9.0 * cosines[1] - 2.5), atol=1e-5)
    pairs = matcher.support_pairs(images, claims)
    assert torch.allclose(pairs, torch.sigmoid(9.0 * cosines.diagonal() - 2.5), atol=1e-5)
    assert matcher.support(images[0], []).shape == (0,)


def test_a_claim_is_verified_against_its_swaps_at_the_clips_own_temperature(
    matcher: ClipMatcher, images: list[Image.Image]
) -> None:
    claim, swaps = "a photo of a dog", ["a photo of a cat", "a photo of a bus"]
    verdict = verify(matcher, images[0], claim, swaps)
    scores = matcher.similarity(images[:1], [claim, *swaps])[0] / matcher.retriever.model.tau
    assert verdict.kind == "swaps"
    assert verdict.p_supported == pytest.approx(float(torch.softmax(scores, -1)[0]), abs=1e-5)


def test_matches_do_not_depend_on_what_the_caller_set_for_his_own_model(
    matcher: ClipMatcher, images: list[Image.Image]
) -> None:
    (before,) = matcher(images[:1], ["a photo of a dog"])
    matcher.forget()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (inside,) = matcher(images[:1], ["a photo of a dog"])
    assert torch.equal(before.relevance, inside.relevance)
    assert before.score == inside.score


def test_an_empty_text_is_refused(matcher: ClipMatcher, images: list[Image.Image]) -> None:
    with pytest.raises(TextError, match="empty"):
        matcher(images[:1], ["  "])


def test_an_uncalibrated_clip_gives_maps_and_cosines_but_no_probability(images: list[Image.Image]) -> None:
    matcher = ClipMatcher(untuned())
    (match,) = matcher(images[:1], ["a photo of a dog"])
    assert match.score == pytest.approx(float(matcher.similarity(images[:1], ["a photo of a dog"])), abs=1e-5)
    assert match.note is not None
    assert "not calibrated" in match.note
    for ask in (matcher.require_support, lambda: matcher.support(images[0], ["a dog"])):
        with pytest.raises(UnsupportedCallError, match="not calibrated"):
            ask()


def test_versions_tell_weights_and_settings_apart(clip_matcher: ClipMatcher, dual_matcher: DualPromptMatcher) -> None:
    assert clip_matcher.version != dual_matcher.version
    assert ClipMatcher(untuned()).version != clip_matcher.version
    assert ClipMatcher(untuned(calibration=(9.0, -2.5))).version == clip_matcher.version
    assert ClipMatcher(untuned(calibration=(9.0, -2.5)), layers=2).version != clip_matcher.version


@pytest.mark.parametrize(
    ("text", "caption", "name"),
    [
        ("is there a dog in the image ?", "a photo of a dog", "dog"),
        ("Is there an orange in this picture?", "a photo of an orange", "orange"),
        ("Are there any traffic lights in the photo?", "a photo of any traffic lights", "traffic lights"),
        ("a photo of a dining table", "a photo of a dining table", "dining table"),
        ("Is the dog brown?", "Is the dog brown?", None),
        ("Please describe this image in detail.", "Please describe this image in detail.", None),
    ],
)
def test_what_is_asked_is_read(text: str, caption: str, name: str | None) -> None:
    assert caption_of(text) == caption
    assert object_of(text) == name


def test_free_text_is_about_the_objects_of_a_vocabulary_that_it_names() -> None:
    words: Callable[[str], list[str]] = lambda text: objects_in(text, Vocabulary.of(None))  # noqa: E731
    assert words("What colour are the dogs beside the bus?") == ["dog", "bus"]
    assert words("Is there a zeppelin in the image?") == ["zeppelin"]
    assert words("Describe the image.") == []


def test_other_maps_are_the_class_tokens_attention_and_that_of_the_text_over_projected_patches(
    matcher: ClipMatcher, images: list[Image.Image]
) -> None:
    (own,) = matcher(images[:1], ["a photo of a dog"])
    model, retriever = matcher.retriever.model, matcher.retriever
    seen = model.base.vision_model(pixel_values=retriever.image_inputs(images[:1]), output_attentions=True)
    salient = matcher.mapped("saliency")
    (match,), (same,) = salient(images[:1], ["a photo of a dog"]), salient(images[:1], ["a red cat"])
    looked = seen.attentions[-1].mean(1)[:, 0, 1:65].detach().view(1, 8, 8)
    assert torch.allclose(match.relevance, heat_map(looked, 96)[0], atol=1e-3)
    assert torch.equal(match.relevance, same.relevance)
    assert match.score == pytest.approx(own.score, abs=1e-5)
    (by_text,) = matcher.mapped("text")(images[:1], ["a photo of a dog"])
    states = model.base.vision_model.post_layernorm(seen.last_hidden_state[:, 1:65])
    patches = torch.nn.functional.normalize(model.base.visual_projection(states), dim=-1)
    cosines = patches @ retriever.text_features(["a photo of a dog"])[0]
    expected = (cosines / model.tau).softmax(-1).detach().view(1, 8, 8)
    assert torch.allclose(by_text.relevance, heat_map(expected, 96)[0], atol=1e-3)
    assert len({matcher.version, salient.version, matcher.mapped("text").version}) == 3
    (again,) = matcher(images[:1], ["a photo of a dog"])
    assert torch.equal(again.relevance, own.relevance)
    with pytest.raises(UnsupportedCallError, match="has no map"):
        matcher.mapped("segments")


def test_a_clip_that_tells_what_evokes_a_picture_abstains_on_what_does_not(
    matcher: ClipMatcher, images: list[Image.Image]
) -> None:
    assert matcher.knows(["in my opinion", "a dog"]) == [True, True]
    told, opinion = matcher.retriever.text_features(["a dog", "in my opinion"])
    line = torch.tensor([200.0, -100.0 * float(1 + told @ opinion)])  # halfway between the two
    matcher.retriever.memory = Memory("visualness", (), {"null": opinion, "line": line})
    try:
        assert matcher.knows(["in my opinion", "a dog"]) == [False, True]
        assert matcher.knows([]) == []
    finally:
        matcher.retriever.memory = None
