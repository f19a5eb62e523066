"""Open-vocabulary detectors as matchers: transformers' own classes, tiny and random."""

import pytest
import tiny
import tiny_detectors
import tiny_open_detectors
import torch

from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.matching import load_matcher
from lvlm_guard.matching.asking import Asked, asked
from lvlm_guard.matching.match import ABSTAIN
from lvlm_guard.matching.open_detector import CUSTOMARY, OpenDetector
from lvlm_guard.matching.vocabulary import Vocabulary

KNOWN = frozenset(Vocabulary.of(None).names)


@pytest.fixture(scope="module", params=tiny_open_detectors.KINDS)
def made(request):
    return request.param, *tiny_open_detectors.make(request.param)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("is there a lighthouse in the image?", Asked("exists", ("lighthouse",))),
        ("is there a pigeon?", Asked("exists", ("pigeon",))),
        ("is there a sofa?", Asked("exists", ("couch",))),
        ("are there two traffic cones?", Asked("counts", ("traffic cones",), 2)),
        ("is there a red car to the left of the truck?", Asked("needs", ("car", "truck"))),
        ("is the lighthouse white?", Asked("nothing")),
        ("is the dog brown?", Asked("needs", ("dog",))),
    ],
)
def test_anything_short_can_be_asked_for(text, expected):
    assert asked(text, KNOWN, anything=True) == expected


def test_scores_are_those_of_transformers_own_forward(made):
    kind, model, processor = made
    matcher, picture = OpenDetector(model, processor), tiny.picture(1, 60, 40)
    name = "lighthouse"
    (seen,) = matcher.boxes([picture], [[name]])
    told = "a photo of a lighthouse" if kind == "owlv2" else "lighthouse."
    inputs = processor(images=picture, text=[told] if kind == "owlv2" else told, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    shown = processor.post_process_grounded_object_detection(out, threshold=0.0, target_sizes=[(1, 1)])[0]
    if kind == "owlv2":
        scores = out.logits[0, :, 0].sigmoid()
        # of the padded square, the picture is the upper part
        place = (shown["boxes"][scores.argmax()] * torch.tensor([1, 60 / 40, 1, 60 / 40])).clamp(0, 1)
    else:
        letters = slice(1, 1 + len(name))
        scores = out.logits[0, :, letters].sigmoid().mean(-1)
        assert torch.isneginf(out.logits[0, 0, 3 + len(name) :]).all()
        place = shown["boxes"][scores.argmax()].clamp(0, 1)
    assert float(seen[name].scores[0]) == pytest.approx(float(scores.max()), abs=1e-5)
    torch.testing.assert_close(seen[name].boxes[0], place, rtol=0, atol=1e-4)


def test_what_is_asked_together_changes_nothing_and_a_picture_is_read_once(made):
    kind, model, processor = made
    calls = []
    handle = (model.owlv2.vision_model if kind == "owlv2" else model.model.backbone).register_forward_hook(
        lambda *_: calls.append(1)
    )
    claims = ["is there a dog?", "are there two cats?", "is there a lighthouse?", "is there a zebra?", "why?"]
    picture, other = tiny.picture(1, 60, 40), tiny.picture(2, 40, 60)
    matcher = OpenDetector(model, processor)
    found = matcher.support(picture, claims)
    assert len(calls) == (1 if kind == "owlv2" else 2), "COCO's names are one pass, another phrase is one more"
    assert matcher.knows(claims) == [True] * 4 + [False]
    assert float(found[-1]) == pytest.approx(ABSTAIN, abs=1e-7)
    again = OpenDetector(model, processor)
    alone = torch.cat([again.support(picture, [claim]) for claim in reversed(claims)]).flip(0)
    torch.testing.assert_close(found, alone)
    pairs = again.support_pairs([other, picture], [claims[0], claims[2]])
    assert float(pairs[1]) == pytest.approx(float(found[2]), abs=1e-6)
    assert matcher.objects(picture, 0.0, Vocabulary.of(("lighthouse", "dog"))) == ["dog", "lighthouse"]
    match, whole = matcher([picture] * 2, ["is there a lighthouse?", "why?"])
    assert match.relevance.shape == (384, 384)
    assert "knows nothing" in whole.note
    handle.remove()


def test_its_threshold_stands_for_even_odds_and_a_folder_answers_alike(made, tmp_path):
    kind, model, processor = made
    matcher = OpenDetector(model, processor)
    a, b = matcher.platt
    assert a * float(torch.tensor(CUSTOMARY[kind]).logit()) + b == pytest.approx(0, abs=1e-6)
    assert matcher.version.endswith(":uncalibrated")
    model.config.lvlm_guard = {"platt": [1.0, 0.5], "missed": 0.1}
    matcher = OpenDetector(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    del model.config.lvlm_guard
    again, picture = load_matcher(str(tmp_path)), tiny.picture(1, 60, 40)
    assert again.version == matcher.version
    claims = ["is there a dog?", "are there two lighthouses?"]
    torch.testing.assert_close(again.support(picture, claims), matcher.support(picture, claims))


def test_another_model_is_refused():
    other, processor = tiny_detectors.make("detr")
    with pytest.raises(UnsupportedModelError, match="'detr': give one of owlv2"):
        OpenDetector(other, processor)
