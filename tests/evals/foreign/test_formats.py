"""Everybody's files give the same answers, and what can't be one is refused with its line."""

import csv
import gzip
import json

import pytest
from openpyxl import Workbook

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import read
from lvlm_guard.evals.foreign.gathered import gather

SAID = [("1", "a.jpg", "Is there a dog in the image?", "yes", "Yes."), ("2", "a.jpg", "Is there a cup?", "no", "no")]


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return path


def table(path, rows):
    heads = list(rows[0])
    if path.suffix == ".xlsx":
        book = Workbook()
        book.active.append(heads)
        for row in rows:
            book.active.append(list(row.values()))
        book.save(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerows([heads, *(row.values() for row in rows)])
    return path


def ours(i, image, question, label, text):
    return {"question_id": int(i), "image": image, "label": label, "text": text}


def lmms_eval(i, image, question, label, text):  # as 0.7.3 wrote it: no document, the picture nowhere
    told = {"question_id": i, "score": 1.0, "prediction": text.lower(), "ground_truth": label}
    prompt = f"{question}\nAnswer the question using a single word or phrase."
    return {"doc_id": int(i), "target": label, "filtered_resps": [text], "input": prompt, "pope_accuracy": told}


def vlmevalkit(i, image, question, label, text):
    return {
        "index": int(i),
        "image_path": image,
        "question": question,
        "answer": label.title(),
        "category": "random,popular",
        "prediction": text,
        "extracted": text.title(),
        "score": True,
    }


def pai(i, image, question, label, text):
    return {"query": question, "label": int(label == "yes"), "ans": text, "question": "USER: <Img>", "file_path": "x"}


@pytest.mark.parametrize(
    ("name", "written", "pictures"),
    [
        ("a.jsonl", ours, True),
        ("a.json", ours, True),
        ("a.jsonl.gz", ours, True),
        ("log.jsonl", lmms_eval, False),
        ("t.xlsx", vlmevalkit, True),
        ("t.tsv", vlmevalkit, True),
        ("t.csv", vlmevalkit, True),
        ("p.jsonl", pai, False),
    ],
)
def test_everybodys_answers_are_read_alike(tmp_path, name, written, pictures):
    rows = [written(*said) for said in SAID]
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    elif name.endswith(".csv"):
        text = table(tmp_path / "x.tsv", rows).read_text()
        path.write_text(text.replace("random,popular", '"random,popular"').replace("\t", ","))
    else:
        (lines if "jsonl" in name else table)(path, rows)
    given = list(read(path))
    assert [(g.text, str(g.label).lower() in ("yes", "1")) for g in given] == [("Yes.", True), ("no", False)]
    assert [g.picture for g in given] == (["a.jpg", "a.jpg"] if pictures else ["", ""])
    assert [g.score for g in given] == [None, None]  # VLMEvalKit's "score" says whether an answer is right
    assert all(said[2] in g.question for g, said in zip(given, SAID, strict=True) if g.question)


def test_captions_of_opera_and_of_agla_and_logs_of_lmms_eval_are_read(tmp_path):
    opera = lines(tmp_path / "o.jsonl", [{"image_id": 42, "caption": "A dog."}])
    agla = [{"question_id": 0, "image": "COCO_val2014_000000000042.jpg", "prompt": "Describe.", "text": "A dog."}]
    told = {"answer": ["dog"], "pred": ["dog"], "image_id": 42}
    log = {"doc_id": 0, "target": "['dog']", "filtered_resps": ["A dog."], "input": "", "coco_cap_chair_i": told}
    (a,), (b,), (c,) = (
        list(read(path)) for path in (opera, lines(tmp_path / "a.jsonl", agla), lines(tmp_path / "l.jsonl", [log]))
    )
    assert (a.picture, b.picture, c.picture) == ("42", "COCO_val2014_000000000042.jpg", "42")
    assert a.text == b.text == c.text == "A dog."
    assert c.objects == ["dog"]


def test_a_line_separator_inside_a_string_is_no_line_end(tmp_path):
    path = lines(tmp_path / "a.jsonl", [ours("1", "a.jpg", "", "yes", "Yes.\u2028No\x85"), ours(*SAID[1])])
    assert "\u2028" in path.read_text(encoding="utf-8")
    assert [g.text for g in read(path)] == ["Yes.\u2028No\x85", "no"]


def test_half_a_character_becomes_a_mark_and_no_crash(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question_id": 1, "image": "a", "label": "yes", "text": "yes \\ud83d"}\n')
    assert gather("t", {"a": read(path)}).answers["text"].to_pylist() == ["yes \ufffd"]


WHOLE = b'{"question_id": 1, "image": "a", "label": "yes", "text": "Yes"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no answer: it is empty"),
        (WHOLE + b'{"question_id": 2, "ima', "Line 2 of .*the last, is cut short.*write the file again, or take"),
        ((WHOLE + '{"question_id": 2, "text": "é"'.encode())[:-2], "Line 2 of .*the last, is cut short"),
        (WHOLE + b"{]\n" + WHOLE, "Line 2 of .* is no JSON"),
        (WHOLE + b"[1]\n", "Line 2 of .* is no answer"),
        (WHOLE.replace(b"Yes", b"Oui, \xe9t\xe9"), "Line 1 of .*UTF-8.*iconv"),
        (WHOLE.decode().encode("utf-16"), "no UTF-8.*iconv -f utf-16"),
        (WHOLE + WHOLE.replace(b'"text"', b'"txt"'), "Line 2 of .* has no 'text'.*Is 'txt' meant"),
        (b'{"id": 1, "say": "Yes"}\n', "no known format: its first row has 'id', 'say'.*Rename the fields"),
        (WHOLE.replace(b'"Yes"', b"null"), "Line 1 of .* has no answer: 'text' is None.*ask again"),
        (WHOLE.replace(b'"Yes"', b'"Is there a dog?"'), "is a file of questions.*--questions"),
        (WHOLE.replace(b"}", b', "score": "high"}'), "Line 1 of .* has the score 'high': it must be a number"),
        (WHOLE.replace(b"}", b', "score": NaN}'), "Line 1 of .* has the score nan"),
        (WHOLE.replace(b"}", b', "score": -Infinity}'), "Line 1 of .*plausibility cut.*'score_cut' in every row"),
        (WHOLE.replace(b"}", b', "score": 1, "score_cut": 2}'), "Line 1 of .* has both 'score' and 'score_cut'.*Take"),
        (WHOLE.replace(b"}", b', "seed": "first"}'), "Line 1 of .* has a seed"),
        (WHOLE.replace(b'"question_id": 1', b'"question_id": null'), "Line 1 of .* has no 'question_id'"),
        (b"[" * 200_000, "begins as a JSON list and is none"),
        (WHOLE + b'{"a": "' + b"x" * 2**25 + b'"}\n', "Line 2 of .* is longer than"),
    ],
)
def test_what_can_not_be_an_answer_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        list(read(path))
    assert path.read_bytes() == content


def test_broken_tables_are_refused(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("index\tprediction\tanswer\n1\tYes\tYes\n2\tNo\n")
    with pytest.raises(DataError, match=r"Line 3 of .* has 2 cells under 3 headings"):
        list(read(path))
    path.write_bytes("index\tprediction\n1\tété\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        list(read(path))
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK no sheet")
    with pytest.raises(DataError, match="can't be read as an Excel table"):
        list(read(path))
    with pytest.raises(DataError, match="can't be read"):
        list(read(tmp_path / "none.jsonl"))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(WHOLE * 1000)[:-20])
    with pytest.raises(DataError, match=r"can't be read|cut short"):
        list(read(packed))


def test_a_runs_table_is_asked_for_by_its_folder(tmp_path):
    with pytest.raises(DataError, match="give the run's folder"):
        list(read(tmp_path / "answers.parquet"))


def test_fields_that_are_null_are_as_if_not_there(tmp_path):
    row = {"question_id": 1, "image": None, "label": "yes", "text": "Yes", "decoder": None, "seed": None}
    (given,) = read(lines(tmp_path / "a.jsonl", [row | {"category": None, "score": None}]))
    assert (given.picture, given.decoder, given.seed, given.kinds, given.score) == ("", "", 0, "", None)


def test_a_log_that_lmms_eval_itself_writes_is_read(tmp_path):
    trackers = pytest.importorskip("lmms_eval.loggers.evaluation_tracker")
    utils = pytest.importorskip("lmms_eval.tasks.pope.utils")
    tracker = trackers.EvaluationTracker(output_path=str(tmp_path))
    tracker.date_id, tracker.general_config_tracker.model_name_sanitized = "now", "model"
    samples = []
    for i, image, question, label, text in SAID:
        doc = {"question_id": i, "question": question, "answer": label, "image_source": image}
        asked = [f"{question}\nAnswer the question using a single word or phrase.", {"max_new_tokens": 128}]
        sample = {"doc_id": len(samples), "doc": doc, "target": label, "arguments": asked, "doc_hash": "0"}
        samples.append(sample | {"resps": [[text]], "filtered_resps": [text]} | utils.pope_process_results(doc, [text]))
    tracker.save_results_samples("pope_adv", samples)
    (path,) = tmp_path.rglob("*_samples_pope_adv.jsonl")
    given = list(read(path))
    assert [(g.item, g.asked, g.label, g.text) for g in given] == [("0", "1", "yes", "Yes."), ("1", "2", "no", "no")]
    assert all(said[2] in g.question for g, said in zip(given, SAID, strict=True))
