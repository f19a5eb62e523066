"""The grid of AGLA's paper: all of it, told before it is run, what it lacks, and what is published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from terminals import printed

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies.reproduce import (
    FILE,
    PUBLISHED,
    dry_run,
    dry_run_table,
    look_up,
    reproduce,
    sentences,
)
from lvlm_guard.evals.studies.reproduce.grid import TABLE, missing, plan

LLAVA, INSTRUCTBLIP = "llava-1.5-7b", "instructblip-vicuna-7b"
KINDS = ("random", "popular", "adversarial")
QUESTIONS = Path(__file__).parents[1] / "data" / "pope"


# --- the plan


def test_the_plan_covers_the_whole_grid_once() -> None:
    points = [(c.model, c.task, c.data, kind, c.mode) for c in plan() for kind in c.kinds]
    modes = ("paper", "official")
    pope_points = product((LLAVA, INSTRUCTBLIP), ("pope",), ("coco", "aokvqa", "gqa"), KINDS, modes)
    chair_points = product((LLAVA, INSTRUCTBLIP), ("chair",), ("coco",), ("chair",), modes)
    assert sorted(points) == sorted([*pope_points, *chair_points])


def test_every_cell_is_the_papers_protocol_with_its_controls_in_one_mode() -> None:
    for cell in plan():
        told = cell.settings
        assert (told.preset, told.seeds, told.split) == ("paper-agla", 3, "test")
        assert told.methods[-1] == ("agla" if cell.mode == "paper" else "agla-official")
        assert told.controls == (cell.mode == "paper")
        # greedy, agla; three seeds of sample, agla-sample; and of sample-matched, apc, agla-random in the paper's mode,
        # with the two prompts of the yes/no controls
        assert cell.answers == cell.items * ((17 + 2 * (cell.task == "pope")) if cell.mode == "paper" else 8)
        assert cell.hours > 0


@pytest.mark.slow
def test_the_grid_of_the_embedded_world_is_the_same_with_one_data_set() -> None:
    cells = plan("embedded", base=Settings(limit=3))
    assert [cell.name for cell in cells] == [
        "embedded/pope-world-paper",
        "embedded/pope-world-official",
        "embedded/chair-world-paper",
        "embedded/chair-world-official",
    ]
    assert [cell.settings.tasks for cell in cells] == [("world_pope",)] * 2 + [("world_chair",)] * 2
    assert cells[2].items == 3


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (("chair",), ["chair-coco-paper", "chair-coco-official"]),
        (("coco", "paper"), ["pope-coco-paper"]),
        (("coco", "gqa", "official"), ["pope-coco-official", "pope-gqa-official"]),
    ],
)
def test_parts_of_the_grid_can_be_chosen(only: tuple[str, ...], names: list[str]) -> None:
    assert [cell.name for cell in plan(LLAVA, only)] == [f"{LLAVA}/{name}" for name in names]


def test_a_part_or_a_model_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no part 'coc'\. Did you mean 'coco'"):
        plan(only=("coc",))
    with pytest.raises(DataError, match=r"Did you mean 'llava-1\.5-7b'"):
        plan("llava-1.5")
    with pytest.raises(DataError, match="Nothing of the grid is left"):
        plan("embedded", ("gqa",))


def test_a_folder_stands_for_the_paper_model_of_its_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "instructblip"}))
    (cell,) = plan(str(tmp_path), ("gqa", "paper"))
    assert (cell.model, cell.settings.model, cell.settings.dtype) == (INSTRUCTBLIP, str(tmp_path), "auto")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(DataError, match="of the type 'qwen2_5_vl': the paper's are llava, instructblip"):
        plan(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is no JSON"):
        plan(str(tmp_path))


def test_each_cell_gets_the_question_files_that_it_asks(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "COCO_val2014_000000000042.jpg", "text": "Describe it."}\n')
    base = Settings(questions=(str(QUESTIONS), str(tmp_path / "list.jsonl")))
    for cell in plan(LLAVA, ("paper",), base):
        names = [Path(path).name for path in cell.settings.questions]
        if cell.task == "chair":
            assert names == ["list.jsonl"]
        else:
            assert {f"{cell.data}_pope_{kind}.json.gz" for kind in KINDS} <= set(names)
            assert all(name.startswith(cell.data) for name in names)
    with pytest.raises(DataError, match="is not there"):
        plan(LLAVA, base=Settings(questions=("nowhere",)))


def test_the_numbers_of_questions_are_those_of_the_published_files() -> None:
    import gzip

    for data in ("coco", "aokvqa", "gqa"):
        asked = set()
        for kind in KINDS:
            seen: dict[tuple[str, str], int] = {}
            for line in gzip.decompress((QUESTIONS / f"{data}_pope_{kind}.json.gz").read_bytes()).splitlines():
                row = json.loads(line)
                pair = row["image"], row["text"]
                seen[pair] = seen.get(pair, 0) + 1
                asked.add((*pair, row["label"], seen[pair]))
        assert len(asked) == TABLE["runs"][f"pope_{data}"]["items"]


# --- the dry run


@pytest.mark.slow
def test_a_dry_run_needs_no_network_and_loads_no_model() -> None:
    code = """
import socket
from torch import nn
from lvlm_guard.evals.studies.reproduce import dry_run, sentences
def refuse(*args, **kwargs): raise AssertionError("a model was made, or the network was asked")
nn.Module.__init__ = socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
print(*sentences(dry_run()), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HOME": "/x"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("16 runs, 841,352 answers, about ")
    assert "14.1 GB: weights, 7.1 billion parameters in float16: llava-hf/llava-1.5-7b-hf" in done.stdout
    assert "20.3 GB: pictures of GQA: https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip" in done.stdout
    assert "10 question files are fetched when they are needed" in done.stdout
    assert "None of this was measured" in done.stdout


@pytest.mark.slow
def test_downloads_are_those_of_the_cells_each_once() -> None:
    whole = dry_run()
    assert len({one["place"] for one in whole["downloads"]}) == len(whole["downloads"])
    assert whole["hours"] == pytest.approx(sum(cell["hours"] for cell in whole["cells"]))
    gqa = [one["place"] for one in dry_run(LLAVA, ("gqa",))["downloads"] if one["by_hand"]]
    assert len(gqa) == 3
    assert "llava-hf/llava-1.5-7b-hf" in gqa
    assert any("gqa/images.zip" in place for place in gqa)
    assert dry_run("embedded", base=Settings(limit=2))["downloads"] == []


def test_a_smaller_limit_takes_less_time() -> None:
    assert dry_run(LLAVA, base=Settings(limit=50))["hours"] < 0.2 * dry_run(LLAVA)["hours"]


@pytest.mark.slow
def test_a_dry_run_of_the_embedded_grid_says_that_nothing_published_stands_beside_it() -> None:
    told = sentences(dry_run("embedded", base=Settings(limit=2)))
    assert "No downloads." in told
    assert any("Nothing published stands beside these figures" in sentence for sentence in told)


def test_a_dry_run_is_json_and_a_table() -> None:
    found = dry_run(LLAVA)
    told = json.loads(json.dumps(found, allow_nan=False))
    assert len(told["cells"]) == 8
    assert told["cells"][0]["kinds"] == list(KINDS)
    for width in (80, 100, 140):
        text = printed([dry_run_table(found, width)], width)
        assert all(cell["name"] in text for cell in found["cells"])
        assert max(map(len, text.splitlines())) <= width


# --- what is missing


@pytest.mark.slow
def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "list.jsonl").write_text('{"image": "COCO_val2014_000000000042.jpg"}\n')
    (tmp_path / "pictures").mkdir()
    base = Settings(questions=(str(QUESTIONS), str(tmp_path / "list.jsonl")), images=str(tmp_path / "pictures"))
    with pytest.raises(DataError) as error:
        reproduce(tmp_path / "out", base=base, echo=str)
    told = str(error.value)
    for weights in ("llava-hf/llava-1.5-7b-hf", "Salesforce/instructblip-vicuna-7b", "Salesforce/blip-itm-large-coco"):
        assert f"hf download {weights}" in told
    for data in ("coco", "aokvqa", "gqa"):
        assert f"500 of 500 pictures of pope_{data} are not in" in told
    assert "chair needs COCO's instances" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_embedded_grid_lacks_nothing() -> None:
    assert missing(plan("embedded", base=Settings(limit=2))) == []


# --- what is published


def test_published_means_are_those_of_their_data_sets_but_for_the_misprints_that_are_noted() -> None:
    for model, kind, method in product((LLAVA, INSTRUCTBLIP), KINDS, ("regular", "vcd")):
        for metric in ("accuracy", "precision", "recall", "f1"):
            figures = [look_up(model, data, kind, method, metric) for data in ("coco", "aokvqa", "gqa")]
            mean = look_up(model, "mean", kind, method, metric)
            assert mean is not None
            apart = abs(np.mean([one["published"] for one in figures if one is not None]) - mean["published"])
            assert apart <= 0.000101 or mean["note"], (model, kind, method, metric)


def test_every_published_row_fits_itself_or_says_so() -> None:
    """Half of the labels are yes, so precision and recall give the accuracy; means of ratios are .6 off."""
    for row in PUBLISHED["rows"]:
        precision, recall = row["precision"] / 100, row["recall"] / 100
        accuracy = 100 * (0.5 * recall + 0.5 - 0.5 * recall * (1 - precision) / precision)
        f1 = 200 * precision * recall / (precision + recall)
        fits = abs(accuracy - row["accuracy"]) < 0.65 and abs(f1 - row["f1"]) < 0.65
        assert fits or "note" in row, row


def test_every_figure_has_a_source_and_none_is_there_without_one() -> None:
    content = json.loads(FILE.read_text())
    assert {row["source"] for row in content["rows"]} == set(content["sources"])
    for data in ("coco", "aokvqa", "gqa"):
        assert look_up(LLAVA, data, "random", "agla", "accuracy") is None
    assert look_up(LLAVA, "coco", "chair", "agla", "chair_i") is None
    assert "CHAIR" in content["missing"]
    agla = look_up(LLAVA, "mean", "popular", "agla", "accuracy")
    assert agla is not None
    assert (agla["published"], agla["source"]) == (0.8514, content["sources"]["agla-table"])
