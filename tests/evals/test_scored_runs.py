"""A folder of answers is scored as its answers are, with what was asked and what it cost beside."""

import json
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import scoring

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.answers import COSTS, table_of
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import identity, score
from lvlm_guard.evals.stats.tally import Stored


def folder(path, items, answers, decoders):
    path.mkdir()
    pq.write_table(table_of(answers), path / "answers.parquet")
    lines = [json.dumps(item | {"tags": {"note": "a\u2028b"}}, ensure_ascii=False) for item in items]
    (path / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = {"name": "quiz", "kind": "pope", "split": "test", "max_new_tokens": 4, "about": {}}
    note = {"settings": {"model": "m"}, "tasks": [task], "decoders": decoders, "identity": "a1"}
    (path / "asked.json").write_text(json.dumps(note))
    return path


def test_a_folder_is_scored_as_its_answers_are_and_keeps_what_it_asked(tmp_path):
    items, answers, *_ = scoring.questions()
    told = [scoring.decoder("greedy")]
    found = score(folder(tmp_path / "run", items, answers, told))
    in_hand = scoring.scored(items, answers, told)
    assert found["rows"] == in_hand["rows"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found
    assert (found["settings"], found["asked"], found["identity"]) == ({"model": "m"}, "a1", identity())
    (tmp_path / "run" / "answers.parquet").unlink()
    with pytest.raises(DataError, match=r"holds no answers\.parquet"):
        score(tmp_path / "run")


def test_work_that_a_server_does_not_tell_has_no_row_and_results_are_strict_json(tmp_path):
    items, answers, *_ = scoring.questions()
    unseen = dict.fromkeys(("forwards", "local_forwards", "local_tokens", "masks"), float("nan"))
    path = folder(tmp_path / "run", items, [replace(one, **unseen) for one in answers], [scoring.decoder("greedy")])
    score(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((path / "results.json").read_text(), parse_constant=refuse)
    assert [row["metric"] for row in found["costs"]] == ["tokens"]


def test_a_table_that_is_torn_is_named(tmp_path):
    path = tmp_path / "answers.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"answers\.parquet can't be read"):
        list(Stored(path))


def test_times_are_compared_on_the_same_pictures():
    items, answers, *_ = scoring.questions(60)
    _, others, *_ = scoring.questions(60, name="agla")
    rows = [
        {"task": "quiz", "split": "test", "item": one.item, "decoder": one.decoder, "seed": 0, "peak_mib": 5.0}
        | {"seconds": (1 + int(one.item) // 6) * (3.0 if one.decoder == "agla" else 1.0)}
        for one in [*answers, *others]
    ]
    told = [scoring.decoder("greedy"), scoring.decoder("agla")]
    costs = COSTS.empty_table().from_pylist(rows, schema=COSTS)
    found = scoring.scored(items, [*answers, *others], told, costs=costs, draws=100)["costs"]
    ratio = find(found, "agla", "quiz", "time_ratio")
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((3.0, 3.0, 3.0))
    assert find(found, "greedy", "quiz", "seconds")["value"] == pytest.approx(5.5)
    assert find(found, "agla", "quiz", "peak_memory_mib")["value"] == 5.0
    assert find(found, "agla", "quiz", "tokens")["value"] == 0.0


def test_requests_that_failed_are_not_counted_as_answers_that_took_no_time():
    items, answers, *_ = scoring.questions(200)
    answers[0] = replace(answers[0], text="", failed="answered 400", score=None)
    rows = [
        {"task": "quiz", "split": "test", "item": one.item, "decoder": "greedy", "seed": 0, "peak_mib": None}
        | {"seconds": 0.0 if one.failed else 2.0}
        for one in answers
    ]
    costs = COSTS.empty_table().from_pylist(rows, schema=COSTS)
    found = scoring.scored(items, answers, [scoring.decoder("greedy")], costs=costs, draws=50)["costs"]
    seconds = find(found, "greedy", "quiz", "seconds")
    assert (seconds["value"], seconds["n"]) == (2.0, 199)


def test_scoring_loads_neither_torch_nor_transformers_nor_lmms_eval(tmp_path):
    items, answers, *_ = scoring.questions(24)
    path = folder(tmp_path / "run", items, answers, [scoring.decoder("greedy"), scoring.decoder("tilt", derive="tilt")])
    code = (
        f"import sys; from lvlm_guard.evals.stats.score import score; score({str(path)!r}); "
        "print([m for m in ('torch', 'transformers', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_identity_of_scoring_is_that_of_its_code():
    assert identity() == identity()
    assert len(identity()) == 16
