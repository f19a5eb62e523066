"""Two saved runs against each other, checked against other implementations of the tests."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import captions, decoder, pope, saved
from scipy import stats
from statsmodels.stats.multitest import multipletests
from terminals import printed

from lvlm_guard.evals.errors import DataError, VoidRunError
from lvlm_guard.evals.metrics import mmhal
from lvlm_guard.evals.report import compare as compare_table
from lvlm_guard.evals.report.compare import Comparison, compare
from lvlm_guard.evals.report.saved import read_run
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings

LABELS = ["yes", "no"] * 60


def answers(accuracy: float, seed: int, labels: list[str] = LABELS) -> list[str]:
    drawn = random.Random(seed)
    other = {"yes": "no", "no": "yes"}
    return [label if drawn.random() < accuracy else other[label] for label in labels]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1), "agla": answers(0.75, 2)})
    saved(tmp_path / "b", pope(LABELS), {"greedy": answers(0.7, 3), "agla": answers(0.95, 4)})
    return tmp_path / "a", tmp_path / "b"


def shown(found: Comparison, width: int) -> str:
    return printed(compare_table.tables(found, width), width)


def difference(found: Comparison, a: str, b: str, metric: str, task: str = "pope_random") -> dict[str, Any]:
    (row,) = [
        row
        for row in found.rows
        if (row["run"], row["decoder"], row["baseline"]) == ("b-a", b, a)
        and (row["task"], row["metric"]) == (task, metric)
    ]
    return row


def test_each_pair_has_its_counts_of_fixed_and_broken_questions(runs: tuple[Path, Path]) -> None:
    found = compare(*runs)
    assert found.pairs == [("greedy", "greedy"), ("agla", "agla")]
    for name, (one, two) in {"greedy": ((0.7, 1), (0.7, 3)), "agla": ((0.75, 2), (0.95, 4))}.items():
        a, b = (np.array(answers(*how)) == np.array(LABELS) for how in (one, two))
        row = difference(found, name, name, "accuracy")
        assert (row["broken"], row["fixed"]) == ((a & ~b).sum(), (b & ~a).sum())
        assert row["value"] == pytest.approx(b.mean() - a.mean())
        assert row["low"] <= row["value"] <= row["high"]


def test_the_p_value_is_that_of_a_paired_permutation_of_pictures(runs: tuple[Path, Path]) -> None:
    row = difference(compare(*runs), "agla", "agla", "accuracy")
    of_pictures = []
    for said in (answers(0.95, 4), answers(0.75, 2)):
        right = [float(text == label) for text, label in zip(said, LABELS, strict=True)]
        of_pictures.append([right[i] + right[i + 1] for i in range(0, len(right), 2)])
    theirs = stats.permutation_test(
        of_pictures, lambda x, y: x.mean() - y.mean(), permutation_type="samples", vectorized=False, n_resamples=2000
    )
    assert row["p"] == pytest.approx(theirs.pvalue, abs=0.02)


def test_p_values_are_adjusted_for_all_differences_of_a_metric_as_statsmodels_does(runs: tuple[Path, Path]) -> None:
    rows = [row for row in compare(*runs).rows if row["metric"] == "f1" and row["baseline"] is not None]
    assert len(rows) == 2
    theirs = multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_holm"] for row in rows] == pytest.approx(list(theirs))


def test_a_run_compared_with_itself_differs_in_nothing(runs: tuple[Path, Path]) -> None:
    found = compare(runs[0], runs[0])
    for row in found.rows:
        if row["baseline"] is not None:
            assert (row["value"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert [one.changed for one in found.changed] == [0, 0]
    assert found.differs == found.left_out == []


def test_swapping_the_runs_turns_every_difference_round(runs: tuple[Path, Path]) -> None:
    there, back = compare(*runs), compare(*reversed(runs))
    differences = [row for row in there.rows if row["baseline"] is not None]
    assert any("fixed" in row for row in differences)
    for row in differences:
        other = difference(back, row["baseline"], row["decoder"], row["metric"], row["task"])
        assert other["value"] == pytest.approx(-row["value"])
        assert other["p"] == pytest.approx(row["p"], abs=0.02)
        if "fixed" in row:
            assert (other["fixed"], other["broken"]) == (row["broken"], row["fixed"])


def test_two_decoders_of_two_runs_can_be_paired_by_name(runs: tuple[Path, Path]) -> None:
    found = compare(*runs, decoder_a="greedy", decoder_b="agla")
    assert found.pairs == [("greedy", "agla")]
    right = [sum(x == y for x, y in zip(answers(*how), LABELS, strict=True)) for how in ((0.7, 1), (0.95, 4))]
    assert difference(found, "greedy", "agla", "accuracy")["value"] == pytest.approx(
        (right[1] - right[0]) / len(LABELS)
    )
    assert compare_table.remarks(found)[0].startswith("greedy → agla on pope_random: ")


def test_scores_of_questions_are_compared_by_what_they_rank(tmp_path: Path) -> None:
    drawn = random.Random(5)
    right = [float(label == "yes") for label in LABELS]
    scores = {x: [r * way + drawn.gauss(0, 1) for r in right] for x, way in (("a", 0.5), ("b", 3.0))}
    for x, own in scores.items():
        saved(tmp_path / x, pope(LABELS), {"greedy": ["yes" if s > 0 else "no" for s in own]}, scores={"greedy": own})
    row = difference(compare(tmp_path / "a", tmp_path / "b"), "greedy", "greedy", "auroc")
    ours, theirs = (
        stats.mannwhitneyu(
            [s for s, r in zip(scores[x], right, strict=True) if r],
            [s for s, r in zip(scores[x], right, strict=True) if not r],
        ).statistic
        / 60**2
        for x in "ba"
    )
    assert row["value"] == pytest.approx(ours - theirs, abs=1e-6)
    assert row["bold"]


def test_a_decoder_that_no_run_has_is_refused_with_the_nearest(runs: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"b has no decoder 'alga'\. Did you mean 'agla'\? It has: greedy, agla"):
        compare(*runs, decoder_a="greedy", decoder_b="alga")


def test_runs_with_other_questions_are_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1)})
    changed = pope(LABELS)
    changed = replace(changed, items=[replace(changed.items[0], prompt="another"), *changed.items[1:]])
    b = saved(tmp_path / "b", changed, {"greedy": answers(0.7, 1)})
    with pytest.raises(DataError, match="prompt differs in 1 items, first in '0': 'question 0' and 'another'"):
        compare(a, b)


def test_runs_with_fewer_questions_are_refused(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1)})
    b = saved(tmp_path / "b", pope(LABELS[:100]), {"greedy": answers(0.7, 1, LABELS[:100])})
    with pytest.raises(DataError) as error:
        compare(a, b)
    assert "n is 120 and 100" in str(error.value)
    assert f"20 items are only in {a.folder}" in str(error.value)


def test_runs_with_other_labels_are_refused(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1)})
    b = saved(tmp_path / "b", pope(["no", "no", *LABELS[2:]]), {"greedy": answers(0.7, 1)})
    with pytest.raises(DataError, match="truth differs in 1 items, first in '0': 'yes' and 'no'"):
        compare(a, b)


def test_runs_without_a_common_task_are_refused(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1)})
    b = saved(tmp_path / "b", captions([["dog"], ["cat"]]), {"greedy": ["a dog", "a cup"]})
    with pytest.raises(DataError, match=r"no task in common: .*a has world_pope, .*b has world_chair"):
        compare(a, b)


def test_decoders_that_decode_otherwise_are_refused(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    sampled = {"sample": {"options": {"do_sample": True, "temperature": 1.0}}}
    saved(tmp_path / "c", pope(LABELS), {"greedy": answers(0.7, 1), "sample": answers(0.6, 5)}, decoders=sampled)
    with pytest.raises(DataError, match="do_sample is False and True"):
        compare(runs[0], tmp_path / "c", decoder_a="greedy", decoder_b="sample")


def test_a_guard_is_not_compared_with_plain_decoding_in_another_number_format(
    tmp_path: Path, runs: tuple[Path, Path]
) -> None:
    half = Settings(dtype="bfloat16")
    saved(tmp_path / "c", pope(LABELS), {"greedy": answers(0.7, 1), "agla": answers(0.9, 5)}, settings=half)
    with pytest.raises(DataError, match="dtype is 'auto' and 'bfloat16'"):
        compare(runs[0], tmp_path / "c", decoder_a="greedy", decoder_b="agla")
    assert "setting dtype is 'auto' and 'bfloat16'." in compare(runs[0], tmp_path / "c").differs


def test_a_void_run_is_refused_with_its_reasons(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    saved(tmp_path / "void", pope(LABELS), {"greedy": ["", *answers(0.7, 1)[1:]]})
    with pytest.raises(VoidRunError, match="greedy on world_pope: 1 of 120 answers are empty"):
        compare(runs[0], tmp_path / "void")


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    (tmp_path / "begun").mkdir()
    told = {"settings": Settings().to_dict(), "tasks": []}
    (tmp_path / "begun" / "asked.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="has not finished"):
        compare(tmp_path / "begun", runs[0])


def test_what_only_one_run_has_and_what_differs_beside_the_answers_is_told(
    tmp_path: Path, runs: tuple[Path, Path]
) -> None:
    b = saved(
        tmp_path / "c",
        pope(LABELS),
        {"greedy": answers(0.7, 1), "vote": answers(0.8, 9)},
        settings=Settings(model="some/model"),
        code="0ther",
        packages={"torch": "3"},
    )
    found = compare(runs[0], b)
    assert found.left_out == [f"Only {runs[0]} has the decoders agla.", f"Only {b.folder} has the decoders vote."]
    assert found.differs == [
        "setting model is 'embedded' and 'some/model'.",
        "code is 'c0de' and '0ther'.",
        "torch is '2' and '3'.",
    ]


def test_means_over_seeds_are_compared_and_other_numbers_of_seeds_are_told(tmp_path: Path) -> None:
    twice = [[x, y] for x, y in zip(answers(0.7, 1), answers(0.8, 2), strict=True)]
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1), "sample": twice})
    b = saved(tmp_path / "b", pope(LABELS), {"greedy": answers(0.7, 1), "sample": [pair[:1] for pair in twice]})
    found = compare(a, b)
    row = difference(found, "sample", "sample", "accuracy")
    right = [sum(x == y for x, y in zip(answers(*how), LABELS, strict=True)) / 120 for how in ((0.7, 1), (0.8, 2))]
    assert row["value"] == pytest.approx(right[0] - sum(right) / 2)
    assert "fixed" not in row
    assert found.differs == ["sample ran 2 times and sample 1 times; means are compared."]
    assert [one.changed for one in found.changed] == [0, 0]


def test_captions_are_compared_by_chair_with_recall_and_length_beside_it(tmp_path: Path) -> None:
    truths = [["dog"], ["cat"], ["cup", "bus"], ["dog", "cat"]] * 5
    before = ["a dog and a cat", "a cat and a bus", "a cup and a bus", "a dog and a cat"] * 5
    after = ["a dog", "a cat", "a cup", "a dog and a cat"] * 5
    a = saved(tmp_path / "a", captions(truths), {"greedy": before})
    b = saved(tmp_path / "b", captions(truths), {"greedy": after})
    found = compare(a, b)
    row = difference(found, "greedy", "greedy", "chair_i", "chair")
    assert row["value"] == pytest.approx(0 - 10 / 40)
    (sentence,) = [text for text in compare_table.remarks(found) if "CHAIR_i" in text]
    assert "b is better" in sentence
    assert "object recall −.167" in sentence
    assert "words −" in sentence
    text = shown(found, 140)
    assert ".000 −.250" in text
    assert ".833 −.167" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_the_terminal_and_cuts_nothing(runs: tuple[Path, Path], width: int) -> None:
    found = compare(*runs)
    text = shown(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    row = difference(found, "agla", "agla", "accuracy")
    line = next(line for line in text.splitlines() if line.startswith(" b: agla"))
    assert f"+{row['value']:.3f}".replace("0.", ".") in line
    assert sum(line.startswith(" a: agla ") for line in text.splitlines()) == 1


def test_long_names_are_folded_and_not_cut(tmp_path: Path) -> None:
    name = "agla[alpha=0.25,beta=0.125,mode=official,frame=original]"
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": answers(0.7, 1), name: answers(0.75, 2)})
    text = shown(compare(a, a), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    table = text.rpartition("─")[2]
    assert f"b: {name}".replace(" ", "") in "".join(
        line[1:].split("  ")[0].strip() for line in table.splitlines()
    ).replace(" ", "")


def test_a_gain_that_comes_from_saying_no_is_told(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", pope(LABELS), {"greedy": ["yes"] * 100 + answers(1, 0)[100:]})
    b = saved(tmp_path / "b", pope(LABELS), {"greedy": ["no"] * 60 + answers(1, 0)[60:]})
    (sentence, *_) = compare_table.remarks(compare(a, b))
    assert "It says yes less often" in sentence
    assert "50 fixed, 30 broken" in sentence


def test_clear_means_clear_after_the_adjustment_for_many_differences(tmp_path: Path) -> None:
    better = ["no" if i in range(0, 12, 2) else label for i, label in enumerate(LABELS)]
    names = [f"m{i}" for i in range(20)]
    a = saved(tmp_path / "a", pope(LABELS), dict.fromkeys(["greedy", *names], better))
    b = saved(tmp_path / "b", pope(LABELS), {"greedy": LABELS} | dict.fromkeys(names, better))
    alone = compare_table.remarks(compare(a, b, decoder_a="greedy"))
    assert "b is better" in alone[0]
    among = compare_table.remarks(compare(a, b))
    assert among[0] == "No clear difference in the other 21."


def test_the_dialects_that_scoring_was_told_are_those_of_a_comparison(tmp_path: Path) -> None:
    task = replace(captions([["dog"], ["cat"]] * 10), vocabulary=None)
    runs = [saved(tmp_path / n, task, {"greedy": [said] * 20}).folder for n, said in (("a", "a dog"), ("b", "a cat"))]
    assert "chair_s_official" in {row["metric"] for row in compare(*runs).rows}
    for run in runs:  # as it is written where scoring was told to read captions one way alone
        results = json.loads((run / "results.json").read_text())
        results["tasks"][0]["about"]["dialects"] = ["ours"]
        (run / "results.json").write_text(json.dumps(results))
    assert {row["dialect"] for row in compare(*runs).rows} == {"ours"}


def test_verdicts_in_the_folders_of_both_runs_score_their_comparison(tmp_path: Path) -> None:
    items = [Item(str(n), str(n), "?", (), truth="a cup", rows=("mmhal",)) for n in range(mmhal.ITEMS)]
    for name, grade in (("a", 2), ("b", 5)):
        texts = [f"{name} {n}" for n in range(len(items))]
        verdicts = tmp_path / name / "verdicts"
        verdicts.mkdir(parents=True)
        reply = {"judge": {"model": "judge-1", "date": "2026-11-29"}, "prompt_sha256": "0"}
        reply |= {"answers_sha256": mmhal.answers_digest(texts), "verdicts": [f"Rating: {grade}, good"] * len(items)}
        (verdicts / "greedy.json").write_text(json.dumps(reply))
        saved(tmp_path / name, EvalTask("mmhal", "mmhal", items, 9), {"greedy": texts})
    moved = (tmp_path / "b").rename(tmp_path / "moved")
    found = compare(tmp_path / "a", moved)
    assert difference(found, "greedy", "greedy", "score", "mmhal")["value"] == 3
    assert ["judged by judge-1" in told for told in found.warnings] == [True]


def test_what_scoring_warns_of_stands_beside_a_comparison(tmp_path: Path) -> None:
    task, one = pope(["yes"] * 40), {"greedy": [1.0] * 40}
    a, b = (saved(tmp_path / name, task, {"greedy": ["yes"] * 40}, scores=one).folder for name in "ab")
    found, told = compare(a, b), "pope_random: all labels are yes, so there is no AUROC (n/a)."
    assert found.warnings == found.to_dict()["warnings"] == [told]
    assert told in compare_table.remarks(found)


def test_a_comparison_is_strict_json_and_says_where_it_comes_from(runs: tuple[Path, Path]) -> None:
    told = json.loads(json.dumps(compare(*runs).to_dict(), allow_nan=False))
    assert (told["command"], told["a"], told["b"]) == ("eval compare", *map(str, runs))
    assert told["changed"][0].keys() == {"a", "b", "task", "changed", "n"}
    needed = {"run", "task", "decoder", "baseline", "role", "metric", "direction", "value", "low", "high", "n"}
    assert all(needed <= row.keys() for row in told["rows"])


def test_comparing_needs_neither_torch_nor_lmms_eval() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval'}"
    code = f"import sys, lvlm_guard.evals.report.compare; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_read_before_is_taken_as_it_is(runs: tuple[Path, Path]) -> None:
    a: Any = read_run(runs[0])
    a.asked["decoders"].append(decoder("gone"))
    assert compare(a, runs[1]).left_out == [f"Only {runs[0]} has the decoders gone."]
