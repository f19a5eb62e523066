"""`siglip`: a tiny random SiglipModel against transformers' own forward, and what it refuses."""

import math

import pytest
import tiny
import tiny_clip
import torch
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

from lvlm_guard.adapters.matchers.clip import SiglipMatcher, SiglipRetriever
from lvlm_guard.errors import TextError, UnsupportedModelError, WeightsError
from lvlm_guard.images import squash
from lvlm_guard.matching import load_matcher
from lvlm_guard.matching.relevance import heat_map

TOKENIZER = tiny_clip.tokenizer()
PROCESSOR = SiglipImageProcessor(size={"height": 32, "width": 32})


def model(**own):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config=small | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 24},
        vision_config=small | {"image_size": 32, "patch_size": 8},
    )
    if own:
        config.lvlm_guard = own
    made = SiglipModel(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif name.startswith("logit"):
                parameter.fill_(1.0)
    return made


@pytest.fixture(scope="module")
def matcher():
    return SiglipMatcher(SiglipRetriever(model(), TOKENIZER, PROCESSOR))


CLAIMS = ["is there a dog in the image?", "a photo of two red cars"]
READ = ["a photo of a dog", "a photo of two red cars"]


def inputs(picture, texts=READ):
    """By transformers' own processors, of the squashed picture."""
    pixels = PROCESSOR(squash(picture, 32, 32), return_tensors="pt")["pixel_values"]
    ids = TOKENIZER(texts, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    return {"pixel_values": pixels, "input_ids": ids}


def test_probabilities_are_those_of_its_own_sigmoid_on_the_whole_picture(matcher):
    picture = tiny.picture(1, 60, 40)
    with torch.no_grad():
        logits = matcher.retriever.model.base(**inputs(picture)).logits_per_image[0]
    found = matcher.support(picture, CLAIMS)
    torch.testing.assert_close(found, logits.sigmoid(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matcher.support_pairs([picture] * 2, CLAIMS), found)
    assert matcher.version.endswith(":uncalibrated")
    fitted = SiglipMatcher(SiglipRetriever(model(platt=[9.0, -2.5]), TOKENIZER, PROCESSOR))
    cosines = matcher.similarity([picture], CLAIMS)[0]
    torch.testing.assert_close(fitted.support(picture, CLAIMS), torch.sigmoid(9 * cosines - 2.5))
    torch.testing.assert_close(cosines, (logits - 1.0) / math.e, rtol=1e-4, atol=1e-5)
    assert "uncalibrated" not in fitted.version


@pytest.mark.parametrize("layers", [1, 3])
def test_the_map_is_what_the_pooling_reads_taken_back_through_the_layers(layers):
    base = model()
    matcher, picture = (
        SiglipMatcher(SiglipRetriever(base, TOKENIZER, PROCESSOR), layers=layers),
        tiny.picture(1, 60, 40),
    )
    (match,) = matcher([picture], CLAIMS[:1])
    given = inputs(picture, READ[:1])
    given["pixel_values"].requires_grad_()
    seen = base.vision_model(pixel_values=given["pixel_values"], output_attentions=True)
    said = base.get_text_features(input_ids=given["input_ids"]).pooler_output
    cosine = torch.nn.functional.cosine_similarity(seen.pooler_output, said)
    *slopes, slope = torch.autograd.grad(cosine.sum(), [*seen.attentions, seen.last_hidden_state])
    row = (seen.last_hidden_state * slope).sum(-1).clamp(min=0)[0]
    for attention, gradient in list(zip(seen.attentions, slopes, strict=True))[::-1][:layers]:
        row = row + row @ (attention * gradient).clamp(min=0).mean(1)[0]
    assert torch.allclose(match.relevance, heat_map(row.detach().view(1, 4, 4), 32)[0], atol=1e-3)
    assert match.score == pytest.approx(float(matcher.support(picture, CLAIMS[:1])), abs=1e-5)


def test_a_folder_answers_alike_and_what_it_cannot_read_is_refused(matcher, tmp_path):
    base = model(platt=[9.0, -2.5])
    for part in (base, TOKENIZER, PROCESSOR):
        part.save_pretrained(tmp_path / "siglip")
    again, picture = load_matcher(str(tmp_path / "siglip")), tiny.picture(1, 60, 40)
    direct = SiglipMatcher(SiglipRetriever(base, TOKENIZER, PROCESSOR))
    assert isinstance(again, SiglipMatcher)
    assert again.version == direct.version
    torch.testing.assert_close(again.support(picture, CLAIMS), direct.support(picture, CLAIMS))
    assert matcher.version != direct.version
    with pytest.raises(TextError, match="SigLIP reads 24"):
        matcher.support(picture, ["dog " * 40])
    tiny_clip.clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(UnsupportedModelError, match="'clip', but this matcher reads 'siglip'"):
        SiglipMatcher.from_pretrained(tmp_path / "clip")
    with pytest.raises(WeightsError, match="hf download"):
        SiglipMatcher.from_pretrained("nobody/nothing")


def test_a_hub_id_is_read_by_what_its_config_says(tmp_path, monkeypatch):
    place = tmp_path / "models--some--siglip"
    for part in (model(platt=[9.0, -2.5]), TOKENIZER, PROCESSOR):
        part.save_pretrained(place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    assert isinstance(load_matcher("some/siglip"), SiglipMatcher)
    with pytest.raises(WeightsError, match="some/other"):
        load_matcher("some/other")
