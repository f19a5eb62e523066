"""Files of rows: what is read, what comes back after writing, and what is refused by name and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lvlm_guard.adapters.data import CaptionRow, RankRow
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.jsonl import read_captions, read_ranks, write_captions, write_ranks
from lvlm_guard.adapters.data.rows import as_json, caption_row, rank_row

SPEC_RANK = '{"image":"a.jpg","object":"horse","value":3,"weight":1.0,"split":"train"}'
SPEC_CAPTION = (
    '{"image":"a.jpg","caption":"a cat","category":"Sphynx","meta":"cat","attributes":{"eyes":"green"},'
    '"negatives":["a dog"],"split":"train"}'
)


def folder(path: Path, *lines: str, name: str = "rows.jsonl") -> Path:
    """Write lines and one picture beside them."""
    Image.new("RGB", (8, 8), "red").save(path / "a.jpg")
    file = path / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_the_documented_rows_are_read(tmp_path: Path) -> None:
    ranks = read_ranks(folder(tmp_path, '{"exhaustive": ["horse", "dog"]}', SPEC_RANK))
    assert ranks.rows == (RankRow("a.jpg", "horse", 3.0, 1.0, "train"),)
    assert list(ranks.exhaustive) == ["horse", "dog"]
    captions = read_captions(folder(tmp_path, SPEC_CAPTION))
    assert captions.rows[0] == CaptionRow("a.jpg", "a cat", "Sphynx", "cat", {"eyes": "green"}, ("a dog",), (), "train")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image":"a.jpg","object":"horse","valeu":3}', "Did you mean 'value'"),
        ('{"image":"a.jpg","object":"horse"}', "'value' missing"),
        ('{"image":"a.jpg","object":"horse","value":"many"}', "finite number"),
        ('{"image":"a.jpg","object":"horse","value":NaN}', "finite number"),
        ('{"image":"a.jpg","object":"horse","value":true}', "finite number"),
        ('{"image":"a.jpg","object":"horse","value":1,"weight":0}', "more than 0"),
        ('{"image":"a.jpg","object":"horse","value":1,"split":"training"}', "train, val, test"),
        ('{"image":"","object":"horse","value":1}', "something in it"),
        ('["a.jpg","horse",3]', "JSON object in braces"),
        ('{"image":"a.jpg","object":', "no JSON"),
        ('{"exhaustive": ["horse"]}', "first line only"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=r"line 2") as refused:
        read_ranks(folder(tmp_path, SPEC_RANK, line))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"negatives": "a dog"}, "must be a list"),
        ({"attributes": ["red"]}, "object of texts"),
        ({"kinds": ["category", "colour"]}, '2 "kinds" for 1'),
        ({"caption": "  "}, "something in it"),
        ({"category": 3}, "something in it"),
    ],
)
def test_a_wrong_caption_row_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match="here") as refused:
        caption_row({**json.loads(SPEC_CAPTION), **change}, "here")
    assert said in str(refused.value)


def test_a_header_with_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'exhaustiv'"):
        read_ranks(folder(tmp_path, '{"exhaustive": ["horse"], "exhaustiv": []}', SPEC_RANK))
    with pytest.raises(DataError, match="can't be filled in"):
        read_ranks(folder(tmp_path, '{"instruction": "Count {cname}."}', SPEC_RANK))


@pytest.mark.parametrize("lines", [(), ("",), ('{"exhaustive": ["horse"]}',)])
def test_a_file_without_rows_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="holds no value"):
        read_ranks(folder(tmp_path, *lines))
    if not lines:
        with pytest.raises(DataError, match="holds no caption"):
            read_captions(folder(tmp_path))


def test_a_file_that_is_not_there_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_captions(tmp_path / "none.jsonl")
    file = folder(tmp_path, SPEC_CAPTION)
    file.write_bytes(SPEC_CAPTION.replace("a cat", "un chat noir é").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(file)


def test_a_wrong_folder_of_pictures_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of the first 1 pictures is there"):
        read_captions(folder(tmp_path, SPEC_CAPTION), images=tmp_path / "elsewhere")


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    other = SPEC_CAPTION.replace('"train"', '"test"')
    with pytest.raises(DataError, match="'train' and 'test'"):
        read_captions(folder(tmp_path, SPEC_CAPTION, other))


def test_two_values_of_one_picture_are_refused_and_a_repeated_one_is_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3\.0 and 4\.0 of 'horse'"):
        read_ranks(folder(tmp_path, SPEC_RANK, SPEC_RANK.replace("3", "4")))
    assert read_ranks(folder(tmp_path, SPEC_RANK, SPEC_RANK)).dropped == {"rows given twice": 1}


def test_negatives_that_equal_their_caption_are_dropped_with_their_kinds_and_counted(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "caption": "A red  cat", "negatives": ["a red cat", "a dog", "a DOG", "a red cat "]}
    row["kinds"] = ["colour", "category", "category", "count"]
    data = read_captions(folder(tmp_path, json.dumps(row)))
    assert data.rows[0].negatives == ("a dog",)
    assert data.rows[0].kinds == ("category",)
    assert data.dropped == {"negatives equal to their caption": 2, "negatives given twice": 1}
    assert "left out: 2 negatives equal to their caption" in str(data.summary())


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(str.strip).filter(bool)
splits = st.sampled_from(["train", "val", "test", None])


@given(st.builds(RankRow, words, words, st.one_of(st.none(), st.floats(-1e9, 1e9)), st.floats(1e-6, 1e6), splits))
def test_a_written_value_row_reads_back_equal(row: RankRow) -> None:
    assert rank_row(json.loads(as_json(row)), "here") == row


@given(st.builds(CaptionRow, words, words, words, words, st.dictionaries(words, words), st.tuples(words, words)))
def test_a_written_caption_row_reads_back_equal(row: CaptionRow) -> None:
    assert caption_row(json.loads(as_json(row)), "here") == row


def test_written_files_read_back_equal(tmp_path: Path) -> None:
    folder(tmp_path)
    rows = [RankRow("a.jpg", "horse", 2.5), RankRow("a.jpg", "dog", None, 0.5, None)]
    read = read_ranks(write_ranks(tmp_path / "r.jsonl", rows, exhaustive=["dog"], template="How much {object}?"))
    assert read.rows == tuple(rows)
    assert read.instruction("horse") == "How much horse?"
    captions = [CaptionRow("a.jpg", "une poêle", attributes={"colour": "red"})]
    assert read_captions(write_captions(tmp_path / "c.jsonl", captions)).rows == tuple(captions)
