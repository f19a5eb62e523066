"""JSON lines are split at line feeds alone, and every fault is named with its line."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign import formats
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.tasks.coco import read_list
from lvlm_guard.evals.tasks.pope.questions import read_questions

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def test_separators_that_str_splitlines_knows_stay_inside_their_string(tmp_path):
    rows = [{"id": i, "text": f"a{mark}b"} for i, mark in enumerate(SEPARATORS)]
    path = tmp_path / "rows.jsonl"
    # raw, as JavaScript and ensure_ascii=False write it; the C0 marks are escaped, as JSON asks
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    assert "\u2028" in path.read_text(encoding="utf-8")
    assert [row for _, row in jsonl.read(path)] == rows


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), min_size=1, max_size=5), st.booleans()
)
def test_what_is_written_is_read_whatever_it_holds(tmp_path_factory, rows, packed):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    written = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(written) if packed else written)
    assert [row for _, row in jsonl.read(path)] == rows
    path.write_text(json.dumps(rows, indent=1))
    assert [row for _, row in jsonl.read(path)] == rows


def test_a_torn_last_line_is_told_from_a_broken_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 1}\n\n{"id": 2, "te')
    with pytest.raises(DataError, match=r"Line 3 of .*, the last, is cut short"):
        jsonl.read(path)
    path.write_bytes(b'{"id": 1}\n{"id"\n{"id": 3}\n')
    with pytest.raises(DataError, match=r"Line 2 of .* is no JSON"):
        jsonl.read(path)
    path.write_bytes(b'{"id": 1}\n{"id": 2}')  # whole without a line end, as POPE publishes
    assert [number for number, _ in jsonl.read(path)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no answer"),
        (b"[1]", "Line 1 of .* is no answer: 1"),
        (b"[1", "begins as a JSON list and is none"),
        (b'{"id": 1, "txt": ""}\n', "Line 1 of .* has no 'text'; it has 'id', 'txt'. Is 'txt' meant"),
        (
            b'{"id": 1, "text": ""}\n{"id": 2, "text": ""}\n{"id": 1, "text": ""}\n',
            "id 1 more than once, in lines 1 and 3",
        ),
        (b'{"id": 1, "text": "\xff"}\n', "Line 1 of .* is no UTF-8 .*iconv -f latin1"),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        jsonl.read(path, needs=("id", "text"), unique=("id",), what="answer")
    with pytest.raises(DataError, match="can't be read"):
        jsonl.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("reader", ["questions", "pictures", "answers", "captions"])
def test_every_reader_of_the_room_keeps_a_line_separator_inside_its_string(tmp_path, reader):
    path, text = tmp_path / "rows.jsonl", "a dog\u2028and\x85a cat"
    known = {"question_id": 1, "image": "1.jpg", "text": text}
    rows = {
        "questions": known | {"label": "yes"},
        "pictures": {"image": "1.jpg", "text": text},
        "answers": known | {"label": "yes", "prompt": "?"},
        "captions": {"image_id": 1, "caption": text},
    }
    path.write_text(json.dumps(rows[reader], ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    if reader == "questions":
        assert read_questions(path)[0].text == text
    elif reader == "pictures":
        assert read_list(path) == {"1.jpg": text}
    else:
        assert [given.text for given in formats.read(path)] == [text]
