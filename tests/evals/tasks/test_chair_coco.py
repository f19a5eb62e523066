"""CHAIR over COCO: which pictures, what is in them, and how they are asked."""

import gzip
import hashlib
import json

import pytest
from answered import answered
from question_rows import DATA, published, written

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.tasks import tasks_of

NUMBERS = list(range(500000, 500060))
TRUTH = DATA / "chair" / "gt_objects.json.gz"


def name(number):
    return f"COCO_val2014_{number:012d}.jpg"


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def coco(tmp_path, jpeg):
    """60 pictures with a person annotated in each, and what people said of them."""
    said = {NUMBERS[0]: ["A man rides a bus.", "Two hot dogs on a table."], NUMBERS[1]: ["Nothing to see."]}
    pictures = [{"id": number, "file_name": name(number)} for number in NUMBERS]
    instances = {
        "images": pictures,
        "categories": [{"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}],
        "annotations": [{"image_id": number, "category_id": 1} for number in NUMBERS]
        + [{"image_id": NUMBERS[1], "category_id": 44}] * 2,
    }
    captions = {
        "images": pictures,
        "annotations": [
            {"image_id": number, "caption": text} for number in NUMBERS for text in said.get(number, ["A dog."])
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(instances))
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(captions))
    (tmp_path / "val2014").mkdir()
    for number in NUMBERS:
        (tmp_path / "val2014" / name(number)).write_bytes(jpeg)
    return tmp_path


def made(folder, **settings):
    given = {"images": str(folder), "annotations": str(folder / "annotations")} | settings
    (task,) = tasks_of(Settings(tasks=("chair",), **given))
    return task


def test_what_is_in_a_picture_is_what_is_annotated_and_what_people_name(coco):
    truth = {item.key: item.truth for item in made(coco, questions=(listed(coco, NUMBERS),)).items}
    assert truth[str(NUMBERS[0])] == ["bus", "dining table", "hot dog", "person"]
    assert truth[str(NUMBERS[1])] == ["bottle", "person"]
    assert truth[str(NUMBERS[2])] == ["dog", "person"]


def listed(folder, numbers, **more):
    rows = [{"question_id": i, "image": name(number)} | more for i, number in enumerate(numbers)]
    return written(folder / "list.jsonl", rows)


def test_the_pictures_are_those_of_the_smallest_digests_and_never_of_the_validation_half(coco):
    whole = made(coco)
    expected = sorted((n for n in NUMBERS if digest(n)[0] < "8"), key=digest)
    assert [item.key for item in whole.items] == [str(number) for number in expected]
    assert [item.key for item in made(coco, captions=7).items] == [str(number) for number in expected[:7]]
    assert [item.key for item in made(coco, limit=7).items] == [str(number) for number in expected[:7]]
    assert "chosen among 60, not among the 40504" in whole.about["warnings"][0]
    names = "\n".join(sorted(name(number) for number in expected))
    assert whole.about["pictures"] == hashlib.sha256(names.encode()).hexdigest()[:16]


def test_five_hundred_pictures_are_the_same_whatever_else_is_annotated(tmp_path, jpeg):
    table = json.loads(gzip.decompress(TRUTH.read_bytes()))
    for number in sorted(map(int, table["images"]), key=digest)[:520]:
        (tmp_path / name(number)).write_bytes(jpeg)  # some are of train2014 in truth; the table does not say
    task = made(tmp_path, annotations=str(TRUTH))
    assert len(task.items) == 500
    assert [i.key for i in task.items] == [str(n) for n in sorted(map(int, table["images"]), key=digest)[:500]]
    item = task.items[0]
    assert item.truth == sorted(table["categories"][i] for i in table["images"][item.key])


def test_validation_pictures_are_of_the_other_half_and_of_no_test_or_list(coco, jpeg):
    kept_out = [n for n in NUMBERS if digest(n)[0] >= "8"][:3]
    val = made(coco, split="val", questions=(listed(coco, kept_out),))
    test = made(coco)
    asked = {item.picture for item in val.items}
    assert asked
    assert not asked & {item.picture for item in test.items}
    assert not asked & {name(number) for number in kept_out}
    assert asked == {name(n) for n in NUMBERS if digest(n)[0] >= "8" and n not in kept_out}
    tested = [row["image"] for row in published("coco", "random")[::6]]
    for picture in tested:
        (coco / "val2014" / picture).write_bytes(jpeg)
    asked = {item.picture for item in made(coco, split="val", annotations=str(TRUTH)).items}
    assert asked
    assert not asked & set(tested)


def test_a_list_gives_the_pictures_their_order_and_the_prompt(coco):
    numbers = NUMBERS[5:2:-1]
    task = made(coco, questions=(listed(coco, numbers, text="Say what you see.", category="detail"),))
    assert [item.picture for item in task.items] == [name(number) for number in numbers]
    assert {item.prompt for item in task.items} == {"Say what you see."}
    assert task.about["prompt"] == "Say what you see."
    assert task.about["warnings"] == []
    assert made(coco, questions=(listed(coco, numbers),)).items[0].prompt == "Please describe this image in detail."


def test_captions_may_be_as_long_as_the_protocol_has_them(coco):
    given = {"questions": (listed(coco, NUMBERS[:2]),)}
    assert made(coco, **given).max_new_tokens == 512
    assert made(coco, **given, preset="paper-agla").max_new_tokens == 1024
    assert made(coco, **given, preset="paper-agla", model="hub/InstructBLIP-vicuna").max_new_tokens == 256
    assert made(coco, **given, max_new_tokens=64).max_new_tokens == 64


def test_the_official_example_comes_out_to_the_last_digit(tmp_path, jpeg):
    rows = [json.loads(line) for line in (DATA / "chair" / "example_inputs.jsonl").read_text().splitlines()]
    for row in rows:
        (tmp_path / name(row["image_id"])).write_bytes(jpeg)
    path = listed(tmp_path, [row["image_id"] for row in rows])
    task = made(tmp_path, annotations=str(TRUTH), questions=(path,))
    captions = {str(row["image_id"]): row["caption"] for row in rows}
    measured = answered([task], greedy=[lambda item: captions[item.key]])["rows"]
    expected = json.loads((DATA / "chair" / "example_outputs.json").read_text())["overall_metrics"]
    for metric, official in (("chair_s", "CHAIRs"), ("chair_i", "CHAIRi"), ("object_recall", "Recall")):
        assert find(measured, "greedy", "chair", f"{metric}_official")["value"] == expected[official]


def test_what_is_missing_is_said_before_any_model_is_loaded(coco):
    with pytest.raises(DataError, match="give their folder with --images"):
        made(coco, images="")
    with pytest.raises(DataError, match=r"needs COCO's instances: give .*annotations_trainval2014\.zip"):
        made(coco, annotations="")
    (coco / "val2014" / name(NUMBERS[0])).unlink()
    with pytest.raises(DataError, match=f"1 of 1 pictures of chair are not in .*; the first is {name(NUMBERS[0])}"):
        made(coco, questions=(listed(coco, NUMBERS[:1]),))
    (coco / "val2014" / name(9)).write_bytes((coco / "val2014" / name(NUMBERS[1])).read_bytes())
    with pytest.raises(DataError, match="Nothing is known of COCO_val2014_000000000009"):
        made(coco, questions=(listed(coco, [9]),))
    (coco / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(DataError, match="needs COCO's captions"):
        made(coco)
    with pytest.raises(DataError, match=r"captions_val2014\.json is not there"):
        made(coco, annotations=str(coco / "annotations" / "instances_val2014.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.jpg"}\n{"image": "a.jpg"}\n', "more than once, in lines 1 and 2"),
        ('{"image": "a.jpg"}\nnonsense\n', "Line 2 .* is no JSON"),
        ('{"image": "a.jpg"}\n{"picture": "b.jpg"}\n', "Line 2 .* has no 'image'"),
        (json.dumps({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}), "no list of pictures"),
    ],
)
def test_a_wrong_list_is_refused(coco, content, message):
    path = coco / "pictures.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        made(coco, questions=(str(path),))
    with pytest.raises(DataError, match="is not there"):
        made(coco, questions=(str(coco / "nowhere.jsonl"),))


def test_annotations_that_are_none_are_refused(coco):
    path = coco / "annotations" / "captions_val2014.json"
    for content in ("[]", "{}", '{"annotations": [{"image_id": 1}]}', "nonsense"):
        path.write_text(content)
        with pytest.raises(DataError, match="captions_val2014"):
            made(coco)
    strange = coco / "objects.json"
    strange.write_text('{"categories": ["person"]}')
    with pytest.raises(DataError, match="is no ground truth"):
        made(coco, annotations=str(strange))
