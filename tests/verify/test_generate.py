"""`generate(..., verify=True)` on the embedded model and its own matcher."""

import json

import pytest
import torch
from matchers import Brightness
from PIL import Image

from lvlm_guard import guard, methods
from lvlm_guard.embedded.world import CAPTION_PROMPT, CLASSES, scenes
from lvlm_guard.errors import KnobError, MissingViewError, UnsupportedCallError
from lvlm_guard.matching import Matcher, Vocabulary, load_matcher
from lvlm_guard.pretrained import ask, load_model, spoken
from lvlm_guard.verify import Verifier, mentions, verify, verify_answer

NOUNS = tuple(CLASSES)
WORLD = Vocabulary.of(NOUNS)


@pytest.fixture(scope="module")
def pair():
    model, processor = load_model("embedded")
    return guard(model, processor, "vote", objects=NOUNS)


def pictures(count):
    found = scenes("val", count)
    return [Image.fromarray(found.image[i]) for i in range(count)]


def asked(pair, images, prompts):
    return ask(pair[1], [[image] for image in images], prompts)


def test_each_object_of_each_answer_has_the_matchers_own_verdict(pair):
    model, processor = pair
    images = pictures(6)
    inputs = asked(pair, images, [CAPTION_PROMPT] * 6)
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False, verify=True)
    matcher = load_matcher("embedded")
    told = 0
    for image, row, checked in zip(images, out.sequences, out.guard.extra["verdicts"], strict=True):
        text = spoken(processor, row[inputs["input_ids"].shape[1] :].tolist())
        assert [one.mention for one in checked] == mentions(text, WORLD)
        for one in checked:
            p = float(matcher.support(image, [one.verdict.claim])[0])
            assert one.verdict.p_supported == pytest.approx(p, abs=1e-5)
            assert one.mention.object in one.verdict.claim
            told += 1
    assert told > 6


def test_verify_changes_no_token_and_its_verdicts_are_plain_data(pair):
    model, _ = pair
    images = pictures(2)
    inputs = asked(pair, images, [CAPTION_PROMPT] * 2)
    plain = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False, verify=True, return_dict_in_generate=False)
    assert torch.equal(out.sequences, plain)
    assert json.loads(json.dumps(out.guard.to_dict()))["verdicts"][0][0]["verdict"]["kind"] == "absolute"


def test_verdicts_tell_present_from_absent_objects(pair):
    """A plain caption of this model names absent objects; they are doubted far more often than present ones."""
    model, processor = pair
    found = scenes("val", 40)
    images = [Image.fromarray(found.image[i]) for i in range(40)]
    inputs = asked(pair, images, [CAPTION_PROMPT] * 40)
    tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False, guard=False)
    doubted = {True: [], False: []}
    for i, row in enumerate(tokens):
        text = spoken(processor, row[inputs["input_ids"].shape[1] :].tolist())
        there = {CLASSES[k] for k in found.visible(i)[0]}
        for one in verify_answer(load_matcher("embedded"), [images[i]], text, WORLD):
            doubted[one.mention.object in there].append(one.verdict.doubtful)
    present, absent = (sum(doubted[there]) / len(doubted[there]) for there in (True, False))
    assert len(doubted[False]) > 20
    assert absent > 0.5  # the matcher is a witness as good as the model, and no oracle
    assert absent > present + 0.25


def test_answers_of_one_request_are_each_checked_against_its_picture(pair):
    model, _ = pair
    inputs = asked(pair, pictures(2), [CAPTION_PROMPT] * 2)
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=32, do_sample=True, num_return_sequences=3, verify=True)
    assert len(out.guard.extra["verdicts"]) == 6


class Comparing(Brightness):
    """Finds a picture as similar to a text as the text is short."""

    temperature = 0.5

    def similarity(self, images, texts):
        return torch.tensor([[1 / len(text) for text in texts] for _ in images])


def test_a_matcher_that_compares_stands_each_object_against_others_that_the_answer_does_not_name():
    image = pictures(1)[0]
    (checked,) = verify_answer(Comparing(), [image], "I see a dog.", WORLD, swaps=5)
    similarity = {name: 1 / len("is there a dog in the image?".replace("dog", name)) for name in NOUNS}
    assert checked.verdict.kind == "swaps"
    assert checked.verdict.runner_up is not None
    assert "dog" not in checked.verdict.runner_up
    assert checked.verdict.margin <= similarity["dog"]
    again = verify_answer(Comparing(), [image], "A cat, then a dog.", WORLD, swaps=5)
    assert "cat" not in again[1].verdict.runner_up


def test_several_pictures_support_an_object_as_well_as_the_best_of_them():
    images = pictures(8)
    matcher = load_matcher("embedded")
    one = [verify(matcher, image, "is there a dog in the image?").p_supported for image in images]
    (checked,) = verify_answer(matcher, images, "a dog", Vocabulary.of(("dog", "cat")))
    assert checked.verdict.p_supported == pytest.approx(max(one), abs=1e-5)


def test_an_answer_without_a_picture_has_no_verdicts(pair):
    model, processor = pair
    inputs = ask(processor, [[]], ["is there a dog ?"])
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, verify=True)
    assert out.guard.extra["verdicts"] == [[]]


def test_verify_needs_the_pictures_a_guard_and_a_matcher_that_judges(pair):
    model, _ = pair
    inputs = asked(pair, pictures(1), [CAPTION_PROMPT])
    with pytest.raises(UnsupportedCallError, match="guard=False leaves"):
        model.generate(**inputs, guard=False, verify=True)
    for wrong in ("yes", Verifier):
        with pytest.raises(KnobError, match="or a lvlm_guard"):
            model.generate(**inputs, verify=wrong)
    with pytest.raises(UnsupportedCallError, match="no probabilities"):
        model.generate(**inputs, verify=Verifier(matcher=Maps()))
    bare = {key: value for key, value in inputs.items() if key != "guard_views"}
    with pytest.raises(MissingViewError):
        model.generate(**bare, guard=methods.APC(), verify=True)


class Maps(Matcher):
    """Gives maps only."""

    version = "maps"

    def __call__(self, images, texts):
        raise AssertionError("not asked")
