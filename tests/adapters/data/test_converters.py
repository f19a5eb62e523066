"""Published layouts become files of rows that say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvlm_guard.adapters.data import FactsData
from lvlm_guard.adapters.data import __main__ as convert
from lvlm_guard.adapters.data.__main__ import main
from lvlm_guard.adapters.data.read import _lines
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import known_of

INSTANCES: dict[str, list[dict[str, Any]]] = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "c.jpg"}],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "iscrowd": 0},
        {"image_id": 7, "category_id": 18, "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "iscrowd": 1},
        {"image_id": 8, "category_id": 1},
    ],
}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> FactsData:
    """What a file says, before it is parted."""
    return _lines(path, path.parent, str(path), "raise")


def test_coco_boxes_are_counted_absence_is_zero_and_a_crowd_is_some(tmp_path: Path) -> None:
    source = written(tmp_path / "instances.json", json.dumps(INSTANCES))
    assert main(["coco", str(tmp_path / "facts.jsonl"), "--instances", str(source), "--split", "train"]) == 0
    data = read(tmp_path / "facts.jsonl")
    assert dict(zip(*data.ranks.values("dog"), strict=True)) == {"a.jpg": 2, "b.jpg": 0, "c.jpg": 0}
    assert dict(zip(*data.ranks.values("person"), strict=True)) == {"b.jpg": 1, "c.jpg": 0}
    assert {facts.split for facts in data.facts} == {"train"}


def test_coco_captions_with_instances_say_what_is_there_what_is_absent_and_nothing_else(tmp_path: Path) -> None:
    captions = INSTANCES | {
        "annotations": [{"image_id": 7, "caption": f"two dogs, caption {k}"} for k in range(5)]
        + [{"image_id": 8, "caption": "a man with his dog"}]
    }
    given = [written(tmp_path / f"{k}.json", json.dumps(one)) for k, one in enumerate((INSTANCES, captions))]
    data = convert.coco(*given).captions
    assert len(data.captions_of["a.jpg"]) == 5
    assert data.objects("a.jpg") == ({"dog", "person"}, set())
    known = known_of(data, WordBank.general())
    assert known("a.jpg") == ({"dog", "person"}, set())
    assert known("b.jpg") == ({"person"}, set())  # a caption names the dog that nobody boxed, so it is unknown
    alone = convert.coco(None, given[1]).captions
    there, absent = known_of(alone, WordBank.general())("a.jpg")
    assert (there, absent) == ({"dog"}, set())


def test_coco_crowds_can_be_left_out_as_the_published_protocol_does(tmp_path: Path) -> None:
    source = written(tmp_path / "instances.json", json.dumps(INSTANCES))
    data = convert.coco(source, crowd="ignore")
    assert list(data.exhaustive) == ["person", "dog"]
    assert dict(zip(*data.ranks.values("person"), strict=True)) == {"a.jpg": 0, "b.jpg": 1, "c.jpg": 0}


@pytest.mark.parametrize(
    "change", [{"images": []}, {"categories": [{"id": 1}]}, {"annotations": [{"image_id": 7, "category_id": 99}]}]
)
def test_a_file_that_is_no_instances_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="instances"):
        convert.coco(written(tmp_path / "instances.json", json.dumps(INSTANCES | change)))


def test_the_released_table_is_read_with_its_weights_and_repeated_rows_once(tmp_path: Path) -> None:
    table = "filepath\ttitle\tcname\tvalue\tsample_weights_by_class\na.jpg\tthree horses\thorse\t3\t0.25\n"
    source = written(tmp_path / "t.tsv", table + table.splitlines()[1] + "\n")
    assert main(["released", str(source), str(tmp_path / "r.jsonl")]) == 0
    data = read(tmp_path / "r.jsonl").ranks
    assert [(r.image, r.object, r.value, r.weight) for r in data.rows] == [("a.jpg", "horse", 3, 0.25)]


def test_a_plain_table_takes_its_folds_from_a_file_of_ids(tmp_path: Path) -> None:
    source = written(tmp_path / "t.csv", "name,mos\n1,4.5\n2,3\n3,1\n")
    ids = written(tmp_path / "train.txt", "1\n3\n")
    named = {"object": "quality", "instruction": "Rank the quality.", "image": "name", "value": "mos"}
    data = convert.values(source, **named, train_ids=ids, suffix=".jpg")  # type: ignore[arg-type]
    assert [(r.image, r.value, r.split) for r in data.ranks.rows] == [
        ("1.jpg", 4.5, "train"), ("2.jpg", 3, "test"), ("3.jpg", 1, "train"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="none of its pictures"):
        convert.values(source, **named, train_ids=written(tmp_path / "x.txt", "9\n"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,vlaue\na,1\n", "Did you mean 'vlaue'"),
        ("image,value\na,1,2\n", "line 2"),
        ("image,value\na\n", "line 2"),
        ("image,value\na,old\n", "finite number"),
        ("", "no column"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        convert.values(written(tmp_path / "t.csv", text), object="age", instruction="Rank the age.")


def test_dcars_layout_is_read_and_negatives_equal_to_the_caption_are_counted(tmp_path: Path) -> None:
    entries = {
        "Sphynx_1": {
            "file_name": "s.jpg", "file_path": "pets/images", "positive": "a Sphynx with green eyes",
            "negative": ["A sphynx with  green eyes", "a Bengal with green eyes"], "class_name": "Sphynx",
        },
        "rose_1": {"file_name": "r.jpg", "file_path": "flowers/r.jpg", "positive": "a red rose", "negative": []},
    }  # fmt: skip
    source = written(tmp_path / "d.json", json.dumps(entries))
    assert main(["dcar", str(source), str(tmp_path / "c.jsonl"), "--meta", "cat"]) == 0
    data = read(tmp_path / "c.jsonl").captions
    assert [row.image for row in data.rows] == ["pets/images/s.jpg", "flowers/r.jpg"]
    assert data.rows[0].negatives == ("a Bengal with green eyes",)
    assert data.rows[0].category == "Sphynx"
    assert data.dropped == {"negatives equal to a true caption": 1}


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="entry 'a'"):
        convert.dcar(written(tmp_path / "d.json", '{"a": {"caption": "x"}}'))
    with pytest.raises(DataError, match="keyed by name"):
        convert.dcar(written(tmp_path / "d.json", "[]"))


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lvlm_guard.adapters.data",
            "coco",
            str(tmp_path / "out.jsonl"),
            "--instances",
            "none.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "There is no file 'none.json'" in done.stderr  # bitsandbytes may advise before
    assert not list(tmp_path.iterdir())
