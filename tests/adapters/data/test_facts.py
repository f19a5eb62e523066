"""Facts: what is read, what comes back after writing, what is unknown, and what is refused by name and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_memory import InMemory
from PIL import Image

from lvlm_guard.adapters.data import CaptionRow, Facts, FactsData, open_facts
from lvlm_guard.adapters.data.facts import SOME, as_json, facts_of, merged
from lvlm_guard.adapters.errors import DataError

LINE = (
    '{"image":"a.jpg","captions":["a cat",{"text":"a red cat","category":"Sphynx","meta":"cat","attributes":'
    '{"eyes":"green"},"negatives":["a dog"]}],"objects":{"cat":1,"dog":"absent","person":"unknown","tree":"present"},'
    '"attributes":{"cat":["red"]},"split":"train"}'
)
OTHERS = ('{"image":"b.jpg","split":"val"}', '{"image":"c.jpg","split":"test"}')


def folder(path: Path, *lines: str, name: str = "facts.jsonl") -> Path:
    """Write lines and pictures beside them."""
    for picture in "abc":
        Image.new("RGB", (8, 8), "red").save(path / f"{picture}.jpg")
    file = path / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_documented_line_is_read(tmp_path: Path) -> None:
    data = open_facts(folder(tmp_path, '{"exhaustive": ["horse", "dog"]}', LINE, *OTHERS))
    assert data.facts[0].objects == {"cat": 1, "dog": 0, "person": None, "tree": SOME}
    assert data.captions.rows == (
        CaptionRow("a.jpg", "a cat", split="train"),
        CaptionRow("a.jpg", "a red cat", "Sphynx", "cat", {"eyes": "green"}, ("a dog",), (), "train"),
    )
    assert data.captions.objects("a.jpg") == ({"cat", "tree"}, {"dog", "horse"})
    assert data.captions.objects("b.jpg") == (set(), {"horse", "dog"})
    said = data.summary()
    assert "3 pictures (1 train, 1 val, 1 test)" in said
    assert "1 unknown" in said


def test_what_no_line_says_is_unknown_and_what_nobody_counted_has_no_value(tmp_path: Path) -> None:
    ranks = open_facts(folder(tmp_path, '{"exhaustive": ["horse"]}', LINE, *OTHERS)).ranks
    found = {name: dict(zip(*ranks.values(name), strict=True)) for name in ("cat", "dog", "tree", "person", "horse")}
    assert found == {
        "cat": {"a.jpg": 1},
        "dog": {"a.jpg": 0},
        "tree": {},
        "person": {},
        "horse": {"a.jpg": 0, "b.jpg": 0, "c.jpg": 0},
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image":"a.jpg","object":{"horse":3}}', "Did you mean 'objects'"),
        ('{"captions":["a cat"]}', '"image" must be a text'),
        ('{"image":"a.jpg","objects":{"horse":"many"}}', "finite number"),
        ('{"image":"a.jpg","objects":{"horse":NaN}}', "finite number"),
        ('{"image":"a.jpg","objects":{"horse":true}}', "finite number"),
        ('{"image":"a.jpg","objects":["horse"]}', "object of names"),
        ('{"image":"a.jpg","weights":{"horse":0}}', "above 0"),
        ('{"image":"a.jpg","captions":"a cat"}', "must be a list"),
        ('{"image":"a.jpg","captions":["  "]}', "something in it"),
        ('{"image":"a.jpg","captions":[{"text":"a","kinds":["colour"]}]}', '1 "kinds" for 0'),
        ('{"image":"a.jpg","captions":[{"text":"a","negatives":"b"}]}', "must be a list"),
        ('{"image":"a.jpg","split":"training"}', "train, val, test"),
        ('["a.jpg","horse",3]', "JSON object in braces"),
        ('{"image":"a.jpg","objects":', "no JSON"),
        ('{"exhaustive": ["horse"]}', "first line only"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=r"line 2") as refused:
        open_facts(folder(tmp_path, LINE, line))
    assert said in str(refused.value)


def test_a_header_with_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'exhaustiv'"):
        open_facts(folder(tmp_path, '{"exhaustive": ["horse"], "exhaustiv": []}', LINE))
    with pytest.raises(DataError, match="can't be filled in"):
        _ = open_facts(folder(tmp_path, '{"instruction": "Count {cname}."}', LINE, *OTHERS)).ranks


@pytest.mark.parametrize("lines", [(), ("",), ('{"exhaustive": ["horse"]}',)])
def test_a_file_without_facts_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="tells of no picture"):
        open_facts(folder(tmp_path, *lines))


def test_a_file_that_is_not_there_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is nothing called"):
        open_facts(tmp_path / "none.jsonl")
    file = folder(tmp_path, LINE)
    file.write_bytes(LINE.replace("a cat", "un chat noir é").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_facts(file)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [(2, 2, 2), (None, 0, 0), ("present", 3, 3), (3, "present", 3), ("unknown", "present", SOME), ("absent", 0, 0)],
)
def test_several_lines_of_a_picture_say_together_what_each_says(one: Any, other: Any, together: float) -> None:
    lines = [
        {"image": "a", "captions": ["x", said], "objects": {"dog": state}} for said, state in (("y", one), ("z", other))
    ]
    found = merged(*(facts_of(line, "here") for line in lines), "here")
    assert found.objects == {"dog": together}
    assert [row.caption for row in found.captions] == ["x", "y", "z"]


@pytest.mark.parametrize(("one", "other"), [(3, 4), ("present", "absent"), (0, 2)])
def test_facts_that_contradict_each_other_are_refused(tmp_path: Path, one: Any, other: Any) -> None:
    lines = [json.dumps({"image": "a.jpg", "objects": {"horse": state}}) for state in (one, other)]
    with pytest.raises(DataError, match=r"'a\.jpg' has .* and .* of 'horse'"):
        open_facts(folder(tmp_path, *lines))


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'train' and 'test'"):
        open_facts(folder(tmp_path, LINE, LINE.replace('"train"', '"test"')))


def test_pictures_that_are_missing_in_the_middle_are_counted_before_anything_is_trained(tmp_path: Path) -> None:
    names = [f"{k}.jpg" for k in range(12)]
    splits = [*["train"] * 8, "val", "val", "test", "test"]
    lines = [json.dumps({"image": n, "captions": ["a"], "split": s}) for n, s in zip(names, splits, strict=True)]
    file = folder(tmp_path, *lines)
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for gone in ("5.jpg", "9.jpg"):
        (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=r"2 of the 12 pictures .*5\.jpg"):
        open_facts(file)
    left = open_facts(file, on_bad="skip")
    assert len(left.facts) == 10
    assert "left out: 2 pictures that are not there" in left.summary()
    with pytest.raises(DataError, match="12 of the 12 pictures"):
        open_facts(file, images=tmp_path / "elsewhere", on_bad="skip")


def test_captions_beyond_the_context_are_refused_with_their_number_or_left_out(tmp_path: Path) -> None:
    file = folder(tmp_path, LINE, *OTHERS)

    def words(text: str) -> int:
        return len(text.split())

    assert open_facts(file).fitting(words, 3) is not None
    with pytest.raises(DataError, match=r"1 captions .* the 2 tokens .* the longest has 3"):
        open_facts(file).fitting(words, 2)
    left = open_facts(file, on_bad="skip").fitting(words, 2)
    assert [row.caption for row in left.captions.rows] == ["a cat"]
    assert left.dropped == {"captions beyond the context": 1}


def pictures(n: int, **more: Any) -> FactsData:
    facts = [Facts(f"{k}.png", (CaptionRow(f"{k}.png", f"caption {k}"),), **more) for k in range(n)]
    return FactsData(facts, InMemory({}), "toy")


def test_pictures_without_a_split_are_parted_in_three_and_move_none_when_others_join() -> None:
    small, large = pictures(300).divided(), pictures(600).divided()
    of = {facts.image: facts.split for facts in large.facts}
    assert all(of[facts.image] == facts.split for facts in small.facts)
    counts = [sum(facts.split == split for facts in large.facts) for split in ("train", "val", "test")]
    assert sum(counts) == 600
    assert all(30 < count < 90 for count in counts[1:])
    assert {f.image for f in pictures(300).divided(seed=4).facts if f.split == "val"} != {
        f.image for f in small.facts if f.split == "val"
    }
    with pytest.raises(DataError, match="too few"):
        pictures(1).divided()


def test_a_part_that_is_missing_is_cut_from_training_and_given_ones_stay() -> None:
    given = FactsData([*pictures(200).facts, Facts("v.png", split="val")], InMemory({}), "toy").divided()
    assert [facts.image for facts in given.facts if facts.split == "val"] == ["v.png"]
    assert 0 < sum(facts.split == "test" for facts in given.facts) < 50


def test_negatives_that_equal_any_caption_of_their_picture_are_dropped_with_their_kinds_and_counted() -> None:
    row = CaptionRow(
        "a", "A red  cat", negatives=("a red cat", "a dog", "a DOG", "one cat "), kinds=("x", "category", "y", "z")
    )
    data = FactsData([Facts("a", (row, CaptionRow("a", "One cat")))], InMemory({}), "toy").captions
    assert data.rows[0].negatives == ("a dog",)
    assert data.rows[0].kinds == ("category",)
    assert data.dropped == {"negatives equal to a true caption": 2, "negatives given twice": 1}


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(str.strip).filter(bool)
splits = st.sampled_from(["train", "val", "test", None])
states = st.one_of(st.none(), st.just(math.inf), st.floats(-1e9, 1e9))


@given(
    words,
    st.lists(st.tuples(words, words, st.dictionaries(words, words), st.tuples(words, words)), max_size=2),
    st.dictionaries(words, states),
    st.dictionaries(words, st.tuples(words)),
    st.dictionaries(words, st.floats(1e-6, 1e6)),
    splits,
)
def test_written_facts_read_back_equal(
    image: str, said: list[Any], objects: Any, attributes: Any, weights: Any, split: str | None
) -> None:
    captions = tuple(CaptionRow(image, a, b, None, c, d, (), split) for a, b, c, d in said)
    facts = Facts(image, captions, objects, attributes, weights, split)
    assert facts_of(json.loads(as_json(facts)), "here") == facts


def test_a_written_file_reads_back_equal(tmp_path: Path) -> None:
    data = open_facts(folder(tmp_path, '{"exhaustive":["dog"],"instruction":"How much {object}?"}', LINE, *OTHERS))
    again = open_facts(data.write(tmp_path / "again.jsonl"))
    assert again.facts == data.facts
    assert again.ranks.instruction("horse") == "How much horse?"
    assert list(again.exhaustive) == ["dog"]
