"""CHAIR against what the published script printed for the same captions."""

import json
from pathlib import Path

import pytest
from captions import read_captions
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair

DATA = Path(__file__).parents[1] / "data" / "chair"
CAPTIONS = json.loads((DATA / "captions_golden.json").read_text())
MICRO = json.loads((DATA / "micro_cases.json").read_text())
KEYS = {
    "captions": "captions",
    "hallucinated_captions": "hallucinated_captions",
    "object_words": "object_words",
    "hallucinated_words": "hallucinated_words",
    "recalled_gt": "recalled_objects",
    "gt_objects": "ground_truth_objects",
}


@pytest.fixture(scope="module")
def objects():
    return chair.read_objects(DATA / "gt_objects.json.gz")


def test_the_ground_truth_is_the_published_one(objects):
    assert len(objects) == 123_287
    assert sum(len(names) for names in objects.values()) == 393_178
    assert sum(not names for names in objects.values()) == 725
    assert sum("person" in names for names in objects.values()) == 70_169


@pytest.mark.parametrize("name", CAPTIONS)
def test_two_thousand_captions_give_the_official_counts_exactly(name, objects):
    scores = chair.score(read_captions(DATA / name), objects, dialect="pattern")
    gold = CAPTIONS[name]
    assert {key: scores[ours] for key, ours in KEYS.items()} == {key: gold[key] for key in KEYS}
    assert scores["chair_s"] == pytest.approx(gold["CHAIRs"], abs=1e-8)
    assert scores["chair_i"] == pytest.approx(gold["CHAIRi"], abs=1e-8)
    assert scores["object_recall"] == pytest.approx(gold["Recall"], abs=1e-8)
    assert scores["length"] == pytest.approx(gold["mean_whitespace_words"])


@pytest.mark.parametrize("case", MICRO["cases"], ids=lambda case: case["caption"][:40])
def test_each_quirk_of_the_official_script_is_kept_in_parity(case):
    (caption,) = chair.compare([case], {case["image_id"]: case["gt"]}, dialect="pattern")
    assert list(caption.found.words) == case["words"]
    assert list(caption.found.nodes) == case["nodes"]
    assert list(caption.found.indices) == case["idxs"]
    assert list(caption.found.tokens) == case["tokens"]
    assert [[word, node] for word, node, _ in caption.hallucinated] == case["hallucinated"]
    assert [index for *_, index in caption.hallucinated] == case["hallucination_idxs"]


def test_the_micro_cases_together_give_the_official_scores():
    truth = {case["image_id"]: case["gt"] for case in MICRO["cases"]}
    scores = chair.score(MICRO["cases"], truth, dialect="pattern")
    assert scores["chair_s"] == MICRO["overall"]["CHAIRs"]
    assert scores["chair_i"] == MICRO["overall"]["CHAIRi"] == 25 / 39
    assert scores["object_recall"] == MICRO["overall"]["Recall"]
    ours = chair.score(MICRO["cases"], truth)
    assert (ours["dialect"], scores["dialect"]) == ("ours", "pattern")
    assert ours["object_words"] > scores["object_words"]  # buses and ties are found


def test_the_published_example_comes_out_field_by_field(objects):
    gold = json.loads((DATA / "example_outputs.json").read_text())
    rows = read_captions(DATA / "example_inputs.jsonl")
    for caption, theirs in zip(chair.compare(rows, objects, "pattern"), gold["sentences"], strict=True):
        assert list(caption.found.tokens) == theirs["words"]
        assert list(caption.found.nodes) == theirs["mscoco_generated_words"]
        assert caption.truth == set(theirs["mscoco_gt_words"])
        assert [word for word, *_ in caption.hallucinated] == theirs["mscoco_hallucinated_words"]
    scores = chair.score(rows, objects, "pattern")
    assert (scores["chair_s"], scores["chair_i"], scores["object_recall"]) == (0.0, 0.0, 6 / 7)


@pytest.mark.parametrize(
    ("caption", "nodes"),
    [
        ("A bus and two buses.", ["bus", "bus"]),
        ("He wears a bow tie, the others wear ties.", ["tie", "tie"]),
        ("Two canoes and a kayak.", ["boat", "boat"]),
        ("Collies and a doggie.", ["dog", "dog"]),
        ("An iPhone on a motor bike.", ["cell phone", "motorcycle"]),
        ("A cheesecake.", ["cake"]),
        ("It is five o'clock.", []),
        ("the plate at home plate by the train tracks", []),
        ("The toilet seat is near a seat.", ["toilet"]),
    ],
)
def test_the_default_finds_what_the_published_script_misses(caption, nodes):
    (read,) = chair.compare([{"image_id": 1, "caption": caption}], {1: []})
    assert list(read.found.nodes) == nodes


def test_indices_stay_right_after_a_seat_is_removed():
    row = {"image_id": 1, "caption": "a seat , the toilet and a chair"}
    (ours,) = chair.compare([row], {1: []})
    (theirs,) = chair.compare([row], {1: []}, "pattern")
    tokens = row["caption"].split()
    assert [tokens[i] for i in ours.found.indices] == ["toilet", "chair"]
    assert [tokens[i] for i in theirs.found.indices] != ["toilet", "chair"]


def test_an_own_vocabulary_takes_the_place_of_the_coco_objects():
    rows = [
        {"image_id": 7, "caption": "the image shows a wineglass , a tv , two wineglasses and a hot dog ."},
        {"image_id": 8, "caption": "the image shows a tree ."},
    ]
    scores = chair.score(rows, {7: {"wineglass", "bus"}, 8: set()}, vocabulary=["wineglass", "tv", "hot dog", "bus"])
    assert (scores["object_words"], scores["hallucinated_words"]) == (4, 2)
    assert (scores["chair_s"], scores["chair_i"], scores["object_recall"]) == (0.5, 0.5, 0.5)
    assert scores["dialect"] == "vocabulary"
    mapped = chair.score(rows, {7: {"glass"}, 8: set()}, vocabulary={"wineglass": "glass"})
    assert mapped["hallucinated_words"] == 0
    assert mapped["object_recall"] == 1.0


def test_names_of_files_and_synonyms_are_understood():
    rows = [{"image_id": "COCO_val2014_000000001290.jpg", "caption": "a woman"}]
    assert chair.score(rows, {"1290": {"girl"}})["chair_i"] == 0.0
    assert chair.image_id("2405722.jpg") == 2405722
    assert chair.image_id("scene-7") == "scene-7"


def test_a_picture_without_ground_truth_is_an_error_unless_parity_is_asked_for():
    row = {"image_id": 1, "caption": "a dog"}
    with pytest.raises(DataError, match="Picture 1 has no ground truth"):
        chair.score([row], {})
    assert chair.score([row], {}, dialect="pattern")["chair_i"] == 1.0


def test_bad_input_is_named():
    with pytest.raises(DataError, match="did you mean 'dog'"):
        chair.score([{"image_id": 1, "caption": "a dog"}], {1: {"dgo"}})
    with pytest.raises(DataError, match="is the text 'dog'"):
        chair.score([{"image_id": 1, "caption": "a dog"}], {1: "dog"})
    with pytest.raises(DataError, match="Row 0 has no 'caption'"):
        chair.score([{"image_id": 1}], {1: set()})
    with pytest.raises(DataError, match="is no text: None"):
        chair.score([{"image_id": 1, "caption": None}], {1: set()})
    with pytest.raises(DataError, match="leave out"):
        chair.score([], {}, dialect="pattern", vocabulary=["dog"])
    with pytest.raises(DataError, match="no dialect 'word-net'; did you mean 'wordnet'"):
        chair.score([], {}, dialect="word-net")
    with pytest.raises(DataError, match="holds no noun"):
        chair.score([], {}, vocabulary=[])
    with pytest.raises(DataError, match="can't be read"):
        chair.read_objects("no/such/file.json")


def test_no_captions_and_no_objects_are_zero_and_no_crash():
    scores = chair.score([], {})
    assert (scores["chair_s"], scores["chair_i"], scores["object_recall"], scores["length"]) == (0, 0, 0, 0)
    scores = chair.score([{"image_id": 1, "caption": "nothing here"}], {1: set()})
    assert (scores["chair_s"], scores["chair_i"], scores["object_recall"]) == (0, 0, 0)


NOUNS = ["dog", "cat", "bus", "kite", "cup"]


@given(
    st.lists(st.lists(st.sampled_from(NOUNS), max_size=6), min_size=1, max_size=8),
    st.lists(st.sets(st.sampled_from(NOUNS)), min_size=8, max_size=8),
)
def test_the_counts_are_those_of_a_recount(captions, truths):
    rows = [{"image_id": i, "caption": " and ".join(f"a {n}" for n in names)} for i, names in enumerate(captions)]
    scores = chair.score(rows, dict(enumerate(truths)))
    wrong = [[n for n in names if n not in truths[i]] for i, names in enumerate(captions)]
    assert scores["object_words"] == sum(map(len, captions))
    assert scores["hallucinated_words"] == sum(map(len, wrong))
    assert scores["hallucinated_captions"] == sum(map(bool, wrong))
    assert scores["recalled_objects"] == sum(len(set(n) & truths[i]) for i, n in enumerate(captions))
