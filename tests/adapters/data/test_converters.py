"""Published layouts become files of rows that say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvlm_guard.adapters.data import coco, dcar, tables
from lvlm_guard.adapters.data.__main__ import main
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.jsonl import read_captions, read_ranks

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


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_coco_boxes_are_counted_absence_is_zero_and_a_crowd_is_unknown(tmp_path: Path) -> None:
    source = written(tmp_path / "instances.json", json.dumps(INSTANCES))
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert main(["coco", str(source), str(tmp_path / "ranks.jsonl"), "--split", "train"]) == 0
    data = read_ranks(tmp_path / "ranks.jsonl")
    assert dict(zip(*data.values("dog"), strict=True)) == {
        "a.jpg": 2,
        "b.jpg": 0,
        "c.jpg": 0,
    }
    assert dict(zip(*data.values("person"), strict=True)) == {"b.jpg": 1, "c.jpg": 0}
    assert data.splits == {"train"}


def test_coco_crowds_can_be_left_out_as_the_published_protocol_does(tmp_path: Path) -> None:
    source = written(tmp_path / "instances.json", json.dumps(INSTANCES))
    rows, names, seen = coco.convert(source, crowd="ignore")
    assert names == ["person", "dog"]
    assert ("a.jpg", "person") not in {(row.image, row.object) for row in rows}
    assert seen == {"pictures": 3, "without any object": 1, "unknown for a crowd": 0}


@pytest.mark.parametrize(
    "change", [{"images": []}, {"categories": [{"id": 1}]}, {"annotations": [{"image_id": 7, "category_id": 99}]}]
)
def test_a_file_that_is_no_instances_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="instances"):
        coco.convert(written(tmp_path / "instances.json", json.dumps(INSTANCES | change)))


def test_the_released_table_is_read_and_its_repeated_rows_are_counted(tmp_path: Path) -> None:
    table = "filepath\ttitle\tcname\tvalue\tsample_weights_by_class\na.jpg\tthree horses\thorse\t3\t0.25\n"
    source = written(tmp_path / "t.tsv", table + table.splitlines()[1] + "\n")
    pictures(tmp_path, "a.jpg")
    assert main(["released", str(source), str(tmp_path / "r.jsonl")]) == 0
    data = read_ranks(tmp_path / "r.jsonl")
    assert [(r.image, r.object, r.value, r.weight) for r in data.rows] == [("a.jpg", "horse", 3, 0.25)]


def test_a_plain_table_takes_its_folds_from_a_file_of_ids(tmp_path: Path) -> None:
    source = written(tmp_path / "t.csv", "name,mos\n1,4.5\n2,3\n3,1\n")
    ids = written(tmp_path / "train.txt", "1\n3\n")
    rows = tables.convert_values(source, object="quality", image="name", value="mos", train_ids=ids, suffix=".jpg")
    assert [(r.image, r.value, r.split) for r in rows] == [
        ("1.jpg", 4.5, "train"), ("2.jpg", 3, "test"), ("3.jpg", 1, "train"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="none of its pictures"):
        tables.convert_values(
            source, object="q", image="name", value="mos", train_ids=written(tmp_path / "x.txt", "9\n")
        )


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
        tables.convert_values(written(tmp_path / "t.csv", text), object="age")


def test_dcars_layout_is_read_and_negatives_equal_to_the_caption_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {
        "Sphynx_1": {
            "file_name": "s.jpg", "file_path": "pets/images", "positive": "a Sphynx with green eyes",
            "negative": ["A sphynx with  green eyes", "a Bengal with green eyes"], "class_name": "Sphynx",
        },
        "rose_1": {"file_name": "r.jpg", "file_path": "flowers/r.jpg", "positive": "a red rose", "negative": []},
    }  # fmt: skip
    source = written(tmp_path / "d.json", json.dumps(entries))
    pictures(tmp_path, "pets/images/s.jpg", "flowers/r.jpg")
    assert main(["dcar", str(source), str(tmp_path / "c.jsonl"), "--meta", "cat"]) == 0
    data = read_captions(tmp_path / "c.jsonl")
    assert [row.image for row in data.rows] == ["pets/images/s.jpg", "flowers/r.jpg"]
    assert data.rows[0].negatives == ("a Bengal with green eyes",)
    assert data.rows[0].category == "Sphynx"
    assert "1 negatives equal to their caption" in capsys.readouterr().out


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="entry 'a'"):
        dcar.convert(written(tmp_path / "d.json", '{"a": {"caption": "x"}}'))
    with pytest.raises(DataError, match="keyed by name"):
        dcar.convert(written(tmp_path / "d.json", "[]"))


def test_the_command_says_what_is_wrong_and_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvlm_guard.adapters.data", "coco", "none.json", str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("There is no file 'none.json'")
    assert not list(tmp_path.iterdir())
