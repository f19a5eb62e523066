"""Answers of several decoders become one table, or are refused with the lines that do not fit together."""

import gzip
import json
import math
import random
from pathlib import Path

import pytest

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import read
from lvlm_guard.evals.foreign.gathered import Questions, gather

POPE = Path(__file__).parents[2] / "data" / "pope"


def row(i, decoder="greedy", **more):
    return {"question_id": i, "image": f"p{i // 2}", "label": "yes", "text": "Yes", "decoder": decoder} | more


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gathered(tmp_path, *files, **options):
    paths = {f"f{at}": written(tmp_path / f"f{at}.jsonl", rows) for at, rows in enumerate(files)}
    return gather("yes_no", {name: read(path) for name, path in paths.items()}, **options)


def test_answers_come_in_the_order_of_questions_and_decoders_whatever_that_of_the_files(tmp_path):
    rows = [row(i, decoder, label="no" if i else "yes") for decoder in ("b", "a") for i in range(3)]
    found = gathered(tmp_path, rows)
    assert [d["name"] for d in found.decoders] == ["b", "a"]
    assert found.answers.select(["item", "decoder"]).to_pylist() == [
        {"item": str(i), "decoder": decoder} for i in range(3) for decoder in ("b", "a")
    ]
    assert found.items["label"].to_pylist() == ["yes", "no", "no"]
    assert set(zip(*(found.answers[name].to_pylist() for name in ("decoder", "role", "baseline")), strict=True)) == {
        ("b", "reference", None),
        ("a", "method", "b"),
    }
    random.Random(1).shuffle(rows)
    other = gathered(tmp_path, rows, baseline="b")
    key = [("item", "ascending"), ("decoder", "ascending")]
    assert other.answers.sort_by(key) == found.answers.sort_by(key)


def test_files_are_decoders_where_they_name_none(tmp_path):
    rows = [{name: value for name, value in row(i).items() if name != "decoder"} for i in range(2)]
    assert [d["name"] for d in gathered(tmp_path, rows, rows).decoders] == ["f0", "f1"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([[row(1), row(2), row(1)]], "'greedy' answers '1' twice, in line 1 of f0 and line 3 of f0.*Take one out"),
        ([[row(1)], [row(1)]], "twice, in line 1 of f0 and line 1 of f1"),
        ([[row(1), row(1, "agla", label="no")]], "'1' has the label 'yes' in line 1 of f0 and 'no' in line 2 .*RePOPE"),
        ([[row(1), row(1, "agla", image="q")]], "'1' has the picture 'p0' in line 1 of f0 and 'q' in line 2 of f0"),
        (
            [[row(1), row(2), row(1, "agla")]],
            "'agla' has no answer to 1 of 2 .*the first is '2'.*line 2 of f0",
        ),
        ([[row(1, label="maybe")]], "Line 1 of f0 has the label 'maybe': it must be 'yes' or 'no'"),
        ([[row(1), row(2, label=None)]], "Line 2 of f0 has no label.*--questions"),
        ([[row(1, score=0.5), row(2, score_cut=1.0)]], "line 1 of f0 has 'score', line 2 of f0 has 'score_cut'"),
        ([[row(1, score=0.5)], [row(1, "agla", score_cut=math.inf)]], "line 1 of f0 has 'score', line 1 of f1"),
        ([[row(1)], []], "holds no answer: it is empty"),
        ([[row(1, image="\ud800")]], "Lines 1 to 1 of f0 hold a name, number or list"),
        ([[row(1, tokens=2**40)]], "Lines 1 to 1 of f0 hold a name, number or list"),
        ([[row(1, cut_at=["a"])]], "Lines 1 to 1 of f0 hold a name, number or list"),
    ],
)
def test_answers_that_do_not_fit_together_are_refused_with_their_lines(tmp_path, files, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        gathered(tmp_path, *files)


def test_an_unknown_baseline_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="No decoder is called 'beam': there are greedy, agla"):
        gathered(tmp_path, [row(1), row(1, "agla")], baseline="beam")


def test_seeds_are_runs_of_one_decoder(tmp_path):
    rows = [row(i) for i in range(2)] + [row(i, "sample", seed=seed) for seed in range(3) for i in range(2)]
    assert len(gathered(tmp_path, rows).answers) == 8
    with pytest.raises(DataError, match="'sample' has no answer to 1 of 2"):
        gathered(tmp_path, rows[:-1])


def test_scores_after_a_cut_are_taken_where_all_are_and_named(tmp_path):
    found = gathered(tmp_path, [row(1, score_cut="inf"), row(2, score_cut=0.3), row(3, score_cut="-Infinity")])
    assert found.answers["score"].to_pylist() == [math.inf, pytest.approx(0.3), -math.inf]
    assert any("after a plausibility cut" in note for note in found.notes)


def test_a_decoder_that_lacks_some_scores_has_none_and_says_where_the_first_is_missing(tmp_path):
    rows = [row(1, score=0.5), row(2), row(1, "agla", score=1.0), row(2, "agla", score=2.0)]
    found = gathered(tmp_path, rows)
    assert found.answers["score"].to_pylist() == [None, 1.0, None, 2.0]
    assert any("greedy has no score in 1 rows, the first line 2 of f0" in note for note in found.notes)


def question_file(tmp_path, kind):
    path = tmp_path / f"coco_pope_{kind}.json"
    path.write_bytes(gzip.decompress((POPE / f"coco_pope_{kind}.json.gz").read_bytes()))
    return path, [json.loads(line) for line in path.read_text().split("\n") if line]


def agla(question, text="yes"):
    told = {"question_id": question["question_id"], "prompt": question["text"], "text": text, "model_id": "llava"}
    return told | {"image": question["image"], "metadata": {}}


def pope(question, text="yes"):
    return {"question": question["text"], "answer": text}


@pytest.mark.parametrize("answered", [agla, pope])
def test_answers_without_labels_find_them_in_the_file_of_questions(tmp_path, answered):
    path, asked = question_file(tmp_path, "random")
    questions = Questions([path])
    found = gather("pope", {"m": questions.join("m", read(written(tmp_path / "m.jsonl", map(answered, asked))))})
    assert found.items["label"].to_pylist() == [question["label"] for question in asked]
    assert found.items["picture"].to_pylist() == [question["image"] for question in asked]
    assert set(found.items["kinds"].to_pylist()) == {"random"}
    assert "published file for coco random" in questions.notes[0]


def test_logs_of_all_kinds_find_the_questions_of_each_kind(tmp_path):
    kinds = ("adversarial", "popular", "random")
    files = [question_file(tmp_path, kind) for kind in kinds]
    log = []
    for path, asked in files:
        for question in asked:
            told = {"question_id": str(question["question_id"]), "prediction": "no"}
            prompt = question["text"].replace("imange", "image") + "\nAnswer with a word or phrase."
            log.append({"doc_id": len(log), "target": question["label"], "input": prompt, "pope_accuracy": told})
            log[-1]["filtered_resps"] = [path.name]
    questions = Questions([path for path, _ in files])
    found = gather("pope", {"m": questions.join("m", read(written(tmp_path / "m.jsonl", log)))})
    assert found.items["kinds"].to_pylist() == [kind for kind in kinds for _ in range(3000)]
    assert [kind for kind in kinds for _ in range(3000)] == [
        text.removeprefix("coco_pope_").removesuffix(".json") for text in found.answers["text"].to_pylist()
    ]


def test_answers_to_another_file_are_refused(tmp_path):
    path, asked = question_file(tmp_path, "random")
    _, popular = question_file(tmp_path, "popular")
    questions = Questions([path])

    def join(rows):
        return list(questions.join("m", read(written(tmp_path / "m.jsonl", rows))))

    with pytest.raises(DataError, match=r"Line 2 of m, question_id 2, is of .* in coco_pope_random.json that"):
        join(map(agla, popular))
    with pytest.raises(DataError, match=r"Line 2 of m is of .*: give their own with --questions"):
        join(map(pope, popular))
    with pytest.raises(DataError, match=r"Line 1 of m, question_id 3001, answers none of the 3000 .*RePOPE"):
        join([agla(asked[0] | {"question_id": 3001})])
    with pytest.raises(DataError, match=r"m has 2999 answers to 3000 questions, and no ids"):
        join(map(pope, asked[:-1]))
    with pytest.raises(DataError, match=r"Line 3001 of m is of .*|Line 3001 of m answers none"):
        join([*map(pope, asked), pope(asked[0])])


def test_repopes_questions_are_not_taken_for_popes(tmp_path, monkeypatch):
    from lvlm_guard.evals.tasks.pope import questions as files

    _, asked = question_file(tmp_path, "random")
    changed = written(tmp_path / "coco_repope_random.json", [q | {"label": "no"} for q in asked[:2774]])
    # its own bytes can't be kept here: it has no licence. Its digest is known, so this one stands in for it
    monkeypatch.setattr(files, "REPOPE", (files._digest(changed),))
    with pytest.raises(DataError, match=r"coco_repope_random.json is RePOPE's"):
        Questions([changed])
    # and where its bytes are others, its labels are
    labelled = [agla(q) | {"label": q["label"]} for q in asked]
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"question_id 1, is of .*'yes'; in coco_repope_random.json .*'no'"):
        list(Questions([changed]).join("m", read(written(tmp_path / "m.jsonl", labelled))))
