"""Closed-set detectors as matchers: transformers' own classes, tiny and random, and boxes whose answer is known."""

import math
from types import SimpleNamespace

import pytest
import tiny
import tiny_detectors
import torch

from lvlm_guard.errors import LogitsError, UnsupportedModelError
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.matching.asking import Asked, asked, object_of
from lvlm_guard.matching.combined import Combined
from lvlm_guard.matching.detector import DetectorMatcher, best
from lvlm_guard.matching.match import ABSTAIN
from lvlm_guard.verify import verify

KNOWN = frozenset({"person", "dog", "couch", "tv", "bird", "zebra"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a dog in the image?", Asked("exists", ("dog",))),
        ("are there any dogs?", Asked("exists", ("dog",))),
        ("is there a sofa in the picture?", Asked("exists", ("couch",))),
        ("a photo of a dog", Asked("exists", ("dog",))),
        ("is there a pigeon in the image?", Asked("needs", ("bird",))),
        ("Are there two dogs in the image?", Asked("counts", ("dog",), 2)),
        ("are there more than 2 people?", Asked("counts", ("person",), 3, True)),
        ("are there at least three dogs in this photo?", Asked("counts", ("dog",), 3, True)),
        ("Is the dog beside the couch brown?", Asked("needs", ("dog", "couch"))),
        ("is there a red dog to the left of the truck?", Asked("needs", ("dog",))),
        ("is there a unicorn?", Asked("nothing")),
        ("why?", Asked("nothing")),
    ],
)
def test_what_a_text_asks(text, expected):
    assert asked(text, KNOWN) == expected


def test_labels_of_every_dialect_stand_for_cocos_objects():
    told = {"sofa": "couch", "tvmonitor": "tv", "diningtable": "dining table", "N/A": None, "LABEL_3": None, "x": "x"}
    assert {label: object_of(label) for label in told} == told


class Constructed:
    """A detector that says what it is told: logits [queries, labels], boxes in shares."""

    config = SimpleNamespace(id2label={0: "person", 1: "dog", 2: "pigeon"}, num_labels=3)
    device, dtype, calls = torch.device("cpu"), torch.float32, 0

    def __init__(self, logits, boxes, **own):
        self.out = SimpleNamespace(logits=torch.tensor([logits]), pred_boxes=torch.tensor([boxes]))
        self.config = SimpleNamespace(**vars(Constructed.config), lvlm_guard=own)

    def eval(self):
        return self

    def state_dict(self):
        return {}

    def __call__(self, **_):
        self.calls += 1
        return self.out


class Pixels(dict):
    def to(self, *_):
        return self


def constructed(scores, boxes, **own):
    """Queries that score (person, dog, pigeon) so, each with a box: middle and size."""
    logits = [[math.log(s / (1 - s)) for s in row] for row in scores]
    model = Constructed(logits, boxes, **own)
    return DetectorMatcher(model, lambda **_: Pixels(pixel_values=torch.zeros(1))), model


LEFT, RIGHT, NEAR = [0.25, 0.5, 0.3, 0.4], [0.75, 0.5, 0.3, 0.4], [0.26, 0.5, 0.3, 0.4]
LOW = 0.001
TWO_DOGS = [[LOW, 0.8, LOW], [LOW, 0.6, LOW], [LOW, 0.7, LOW]]


def test_counts_presence_and_abstention_by_hand_in_one_pass():
    matcher, model = constructed(TWO_DOGS, [LEFT, RIGHT, NEAR], platt=[1.0, 0.0], missed=0.05)
    picture = tiny.picture(1, 60, 40)
    rest = 0.05 / 1.05
    expected = {
        "is there a dog?": 0.8,
        "are there at least two dogs?": 0.6,  # the box near the first is the same dog
        "are there two dogs?": 0.6 * (1 - 1e-4),
        "are there three dogs?": 1e-4,
        "are there no dogs?": 1 - 0.8,
        "is there a person?": rest,
        "is the dog brown?": ABSTAIN,
        "is the dog with the person happy?": rest,
        "is there a unicorn?": ABSTAIN,
    }
    found = matcher.support(picture, list(expected))
    assert found.tolist() == pytest.approx(list(expected.values()), abs=2e-6)
    assert matcher.support(picture, list(expected)[::-1]).tolist() == found.tolist()[::-1]
    assert model.calls == 1
    assert matcher.knows(list(expected)) == [*[True] * 8, False]
    assert matcher.objects(picture) == ["dog"]
    assert "uncalibrated" not in matcher.version
    assert "uncalibrated" in constructed(TWO_DOGS, [LEFT] * 3)[0].version


def test_a_box_stays_whole_and_what_is_not_found_keeps_the_whole_picture():
    matcher, _ = constructed([[LOW, 0.95, LOW]], [LEFT], platt=[1.0, 0.0])
    dog, person = matcher([tiny.picture(1)] * 2, ["is there a dog?", "is there a person?"])
    inside = dog.keep[120:260, 50:150]
    assert bool(inside.all())
    assert 0.4 < float(dog.keep.float().mean()) < 0.6
    assert dog.score == pytest.approx(0.95)
    assert bool(person.keep.all())
    assert "does not find person" in person.note


def test_a_verifier_is_told_what_was_not_checked():
    matcher, _ = constructed(TWO_DOGS, [LEFT, RIGHT, NEAR], platt=[1.0, 0.0])
    picture = tiny.picture(1)
    assert [verify(matcher, picture, f"is there a {n}?").kind for n in ("dog", "unicorn")] == ["absolute", "abstained"]
    assert [verify(matcher, picture, f"is there a {n}?").label for n in ("dog", "unicorn")] == ["supported", "unsure"]


def test_matchers_combine_by_the_mean_of_the_log_odds_of_those_that_know():
    one, _ = constructed(TWO_DOGS, [LEFT, RIGHT, NEAR], platt=[1.0, 0.0])
    two, _ = constructed([[0.9, 0.2, LOW]], [LEFT], platt=[1.0, 0.0])
    two.known = frozenset({"dog"})  # knows nothing of people
    both, picture = Combined([one, two]), tiny.picture(1)
    found = both.support(picture, ["is there a dog?", "is there a person?", "is there a unicorn?"]).tolist()
    odds = (math.log(0.8 / 0.2) + math.log(0.2 / 0.8)) / 2
    assert found[0] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)
    assert found[1] == pytest.approx(float(one.support(picture, ["is there a person?"])), abs=1e-6)
    assert found[2] == pytest.approx(ABSTAIN, abs=1e-7)
    assert both.knows(["a dog", "why?"]) == [True, False]


def test_suppression_is_greedy_over_better_boxes():
    corners = torch.tensor([[0.0, 0, 0.5, 0.5], [0.01, 0, 0.51, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.3]])
    kept = best(torch.tensor([0.9, 0.8, 0.7, 0.6]), corners)
    assert (kept.scores == torch.tensor([0.9, 0.7, 0.6])).all()
    assert torch.equal(kept.boxes, corners[[0, 2, 3]])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "box"])
def test_weights_that_overflow_are_refused(number, where):
    score, side = (number, 0.5) if where == "score" else (0.0, number)
    model = Constructed([[score] * 3], [[0.5, 0.5, side, 0.5]])
    with pytest.raises(LogitsError, match="Load it in float32"):
        DetectorMatcher(model, lambda **_: Pixels(pixel_values=torch.zeros(1))).support(tiny.picture(1), ["a dog"])


def test_an_object_that_is_listed_twice_is_found_once():
    matcher, _ = constructed(TWO_DOGS, [LEFT, RIGHT, NEAR], platt=[1.0, 0.0])
    assert matcher.objects(tiny.picture(1), among=Vocabulary.of(("dog", "unicorn", "dog, puppy"))) == ["dog"]


def test_labels_that_name_nothing_are_refused():
    model = Constructed([[0.0]], [LEFT])
    model.config.id2label = {0: "LABEL_0"}
    with pytest.raises(UnsupportedModelError, match="name no object"):
        DetectorMatcher(model, None)


@pytest.mark.parametrize("kind", tiny_detectors.KINDS)
def test_boxes_are_those_of_the_post_processing_and_a_folder_answers_alike(kind, tmp_path):
    model, processor = tiny_detectors.make(kind)
    model.config.lvlm_guard = {"platt": [1.0, 0.5], "missed": 0.1}
    matcher, picture = DetectorMatcher(model, processor, kind), tiny.picture(1, 60, 40)
    (seen,) = matcher.boxes([picture])
    with torch.no_grad():
        out = model(**processor(images=picture, return_tensors="pt"))
    told = processor.post_process_object_detection(out, threshold=0.02, target_sizes=[(1, 1)])[0]
    best = {
        name: max((float(s) for s, label in zip(told["scores"], told["labels"], strict=True) if int(label) in columns),
                  default=0.0)
        for name, columns in matcher._columns.items()
    }  # fmt: skip
    for name, score in best.items():
        if score:  # post-processing keeps some of the pairs, and one label a query
            assert float(seen[name].scores[0]) >= score - 1e-5
    top = max(best, key=best.__getitem__)
    assert float(seen[top].scores[0]) == pytest.approx(best[top], abs=1e-5)
    place = told["boxes"][int(told["scores"].argmax())].clamp(0, 1)
    torch.testing.assert_close(seen[top].boxes[0], place, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_matcher(str(tmp_path))
    assert again.version.partition(":")[2] == matcher.version.partition(":")[2]
    claims = ["is there a dog?", "are there two people?", "is there a couch?"]
    torch.testing.assert_close(again.support(picture, claims), matcher.support(picture, claims))
