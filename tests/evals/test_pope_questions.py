"""Question files: the published ones, broken ones, and building new ones."""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.tasks.pope.questions import (
    PUBLISHED,
    build,
    identify,
    question_text,
    read_questions,
    write_questions,
)

DATA = Path(__file__).parents[1] / "data"
FILES = sorted((DATA / "pope").glob("*_pope_*.json.gz"))
ROWS = [
    {"image": f"{i}.jpg", "objects": [names[(i + k) % len(names)] for k in range(3 + i % 2)]}
    for names in [["apple", "bowl", "cup", "dog", "egg", "fork", "ox"]]
    for i in range(40)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_published_files_hold_what_the_papers_say(path):
    questions = read_questions(path)
    assert [q.question_id for q in questions] == list(range(1, 3001))
    assert Counter(q.label for q in questions) == {"yes": 1500, "no": 1500}
    assert set(Counter(q.image for q in questions).values()) == {6}
    # the misspelt file is told from the repaired one by name
    typos = sum("imange" in q.text for q in questions)
    assert typos == (57 if path.name == "coco_pope_adversarial.json.gz" else 0)
    assert identify(path).startswith(" ".join([path.name.split("_")[0], path.name.split("_")[2].split(".")[0]]))


def test_every_published_file_is_known_by_its_digest_whatever_its_line_ends(tmp_path):
    content = gzip.decompress((DATA / "pope" / "coco_pope_popular.json.gz").read_bytes())
    other = tmp_path / "popular.json"
    other.write_bytes(content.replace(b"\n", b"\r\n"))
    assert identify(other) == "coco popular"
    other.write_bytes(content[:-1])
    assert identify(other) == PUBLISHED["f31727768b228d04"]
    assert len(read_questions(other)) == 3000
    other.write_bytes(content[1:])
    assert identify(other) is None
    assert hashlib.sha256(content).hexdigest()[:16] in PUBLISHED


def test_every_yes_object_of_coco_is_in_the_chair_ground_truth_and_no_no_object_is():
    objects = chair.read_objects(DATA / "chair" / "gt_objects.json.gz")
    for kind in ("random", "popular", "adversarial_fixed"):
        for question in read_questions(DATA / "pope" / f"coco_pope_{kind}.json.gz"):
            name = question.text.removeprefix("Is there a ").removeprefix("Is there an ")
            name = name.removesuffix(" in the image?")
            present = name in objects[chair.image_id(question.image)]
            assert present == (question.label == "yes"), question


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "image": "a.jpg", "text": "x"}\n', "Line 1 .* has no 'label'"),
        ('{"question_id": 1, "image": "a.jpg", "text": "x", "label": "Yes"}\n', "label 'Yes'"),
        ('{"question_id": "one", "image": "a.jpg", "text": "x", "label": "yes"}\n', "whole number"),
        ('\n{"question_id": 1,\n', "Line 2 of .* is no JSON"),
        ("[1]", "is no POPE question: 1"),
        ("", "holds no POPE question"),
        ('{"question_id": 1, "image": "a", "text": "x", "label": "no"}\n' * 2, "question_id 1 more than once"),
    ],
)
def test_a_broken_question_file_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "questions.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match="RUCAIBox/POPE"):
        read_questions(tmp_path / "none.json")


def test_a_json_list_and_a_written_file_read_the_same(tmp_path):
    questions = build(ROWS, "random", pictures=5)
    write_questions(tmp_path / "lines.json", questions)
    assert read_questions(tmp_path / "lines.json") == questions
    rows = [json.loads(line) for line in (tmp_path / "lines.json").read_text().splitlines()]
    assert list(rows[0]) == ["question_id", "image", "text", "label"]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert read_questions(tmp_path / "list.json") == questions


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_built_questions_take_turns_and_never_ask_twice(kind):
    questions = build(ROWS, kind, pictures=20, seed=3)
    objects = {row["image"]: row["objects"] for row in ROWS}
    assert len(questions) == 120
    assert [q.label for q in questions[:6]] == ["yes", "no"] * 3
    for start in range(0, 120, 6):
        six = questions[start : start + 6]
        assert len({q.image for q in six}) == 1
        assert len({q.text for q in six}) == 6
        present = objects[six[0].image]
        assert [q.text for q in six if q.label == "yes"] == [question_text(name) for name in present[:3]]
        assert all(q.text not in {question_text(n) for n in present} for q in six if q.label == "no")
    assert questions == build(ROWS, kind, pictures=20, seed=3)


def test_popular_asks_for_the_most_frequent_and_adversarial_for_the_companion():
    rows = [{"image": "0", "objects": ["a", "b", "c"]}]
    rows += [{"image": f"x{i}", "objects": ["a", "x", "b"]} for i in range(3)]
    rows += [{"image": f"p{i}", "objects": ["p", "q", "r"]} for i in range(9)]
    rows += [{"image": "c", "objects": ["c", "d", "e"]}]
    popular = [q.text for q in build(rows, "popular", pictures=len(rows)) if q.image == "0" and q.label == "no"]
    assert popular == [question_text(name) for name in ("p", "q", "r")]
    texts = [q.text for q in build(rows, "adversarial", pictures=len(rows)) if q.image == "0" and q.label == "no"]
    assert texts[0] == question_text("x")  # a's companion
    assert texts[2] == question_text("d")  # tied with e; the one seen first wins


def test_the_official_misspelling_is_kept_on_demand_only():
    assert question_text("apple") == "Is there an apple in the image?"
    assert question_text("apple", "official") == "Is there an apple in the imange?"
    assert question_text("dog", "official") == "Is there a dog in the image?"


def test_too_few_pictures_and_too_few_objects_are_said():
    with pytest.raises(DataError, match="only 40 of 40"):
        build(ROWS, "random", pictures=41)
    with pytest.raises(DataError, match="no absent one is left"):
        build([{"image": "0", "objects": ["a", "b", "c"]}], "random", pictures=1)
    with pytest.raises(DataError, match="kind 'rare'"):
        build(ROWS, "rare")
