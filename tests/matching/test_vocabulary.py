import json

import pytest

from lvlm_guard.errors import KnobError
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.asking import yes_no_claim
from lvlm_guard.matching.vocabulary import article, plural


def test_coco_has_eighty_objects_and_their_synonyms():
    coco = Vocabulary.of(None)
    spellings = coco.spellings()
    assert len(coco.names) == 80
    assert coco.names[:3] == ("person", "bicycle", "car")
    assert spellings["motor cycle"] == {"motorcycle"}
    assert spellings["sofa"] == spellings["couches"] == {"couch"}
    assert spellings["people"] == spellings["policemen"] == {"person"}
    assert Vocabulary.of("coco") is coco


def test_by_word_each_listed_word_stands_for_itself_and_its_plural():
    spellings = Vocabulary.of(None).spellings(by_word=True)
    assert spellings["pigeon"] == spellings["pigeons"] == {"pigeon"}
    assert spellings["bird"] == {"bird"}


@pytest.mark.parametrize(
    ("one", "many"),
    {
        "dog": "dogs", "bus": "buses", "bench": "benches", "knife": "knives", "giraffe": "giraffes",
        "puppy": "puppies", "toy": "toys",
        "policeman": "policemen", "mouse": "mice", "stop sign": "stop signs", "wine glass": "wine glasses",
        "box": "boxes", "grandchild": "grandchildren", "minibus": "minibuses",
    }.items(),
)  # fmt: skip
def test_plurals_follow_the_rules_of_english(one, many):
    assert plural(one) == many


@pytest.mark.parametrize(
    ("name", "word"),
    {
        "dog": "a",
        "apple": "an",
        "umbrella": "an",
        "unicycle": "a",
        "hourglass": "an",
        "horse": "a",
        "oven": "an",
    }.items(),
)
def test_an_article_goes_by_sound(name, word):
    assert article(name) == word


def test_a_users_list_may_hold_synonyms_and_compounds():
    mine = Vocabulary.of(("Unicorn", "couch, Sofa", "t-shirt"))
    assert mine.names == ("unicorn", "couch", "t-shirt")
    assert mine.spellings()["sofa"] == {"couch"}
    assert mine.spellings()["t shirt"] == {"t-shirt"}
    assert mine == Vocabulary.of(["unicorn", "couch,sofa", "t-shirt"])


def test_a_file_may_be_lines_or_json(tmp_path):
    lines = tmp_path / "objects.txt"
    lines.write_text("# mine\ncouch, sofa\n\ndog\n")
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(["couch, sofa", "dog"]))
    mapped = tmp_path / "map.json"
    mapped.write_text(json.dumps({"couch": ["sofa"], "dog": []}))
    assert Vocabulary.of(lines) == Vocabulary.of(str(listed)) == Vocabulary.of(mapped)


@pytest.mark.parametrize("objects", [(), ("",), ("dog", "..."), "dog", "nowhere.json"])
def test_a_list_without_objects_is_an_error_that_shows_how_to_write_one(objects):
    with pytest.raises(KnobError, match=r"[Gg]ive"):
        Vocabulary.of(objects)


def test_json_that_holds_no_list_is_an_error(tmp_path):
    (tmp_path / "number.json").write_text("3")
    with pytest.raises(KnobError, match="could not be read"):
        Vocabulary.of(tmp_path / "number.json")


@pytest.mark.parametrize(
    ("question", "claim"),
    {
        "Is there a dog in the image?": "Is there a dog in the image?",
        "is there a dog in the image ?": "is there a dog in the image ?",
        "Are the people happy": "Are the people happy",
        "Is there a dog? Please answer with yes or no.": "Is there a dog?",
        "Look closely. Does the man wear a hat?": "Does the man wear a hat?",
        "Can you see a cat in the picture?": "Can you see a cat in the picture?",
        "Is there a dog in the image, yes or no?": "Is there a dog in the image, yes or no?",
        "Has it rained?": "Has it rained?",
    }.items(),
)
def test_a_yes_no_question_is_its_own_claim(question, claim):
    assert yes_no_claim(question) == claim


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?!",
        "Please describe this image in detail.",
        "What is in the image?",
        "How many dogs are there?",
        "Can you describe this image?",
        "Could you please tell me what you see?",
        "Is it a cat or a dog?",
        "Isn't there a dog?",
        "Do not mention the cat. Describe the rest.",
        "Isle of Man: what is on the flag?",
        "Ist ein Hund im Bild?",
        "Describe the dog. Is there a cat",
    ],
)
def test_other_questions_claim_nothing(question):
    assert yes_no_claim(question) is None
