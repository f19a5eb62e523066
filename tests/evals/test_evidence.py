"""Which items are shown, by rule; and their pictures, collected from a real run of the embedded model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.decoders.decoder import PLAIN
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.generate import Prepared, prepare, prepare_run
from lvlm_guard.evals.report.disagreement import disagreements, judge, watched
from lvlm_guard.evals.report.evidence import collect, collect_for
from lvlm_guard.evals.report.saved import Run, read_run
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from tests.support import runs

SETTINGS = Settings(methods=("agla", "vote"), limit=6, captions=6, seeds=1, batch=64, controls=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = ask(SETTINGS, tmp_path_factory.mktemp("run"), workers=1, bar=False, echo=lambda _: None)
    score(folder)
    return read_run(folder)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare_run(SETTINGS)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def index_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def elsewhere(run: Run, folder: Path) -> Run:
    """The same run in a folder of its own."""
    folder.mkdir(exist_ok=True)
    for name in ("asked.json", "items.jsonl", "answers.parquet", "results.json"):
        (folder / name).write_bytes((run.folder / name).read_bytes())
    return read_run(folder)


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_whatever_was_matched_before(
    run: Run, prepared: Prepared, tmp_path: Path
) -> None:
    a, b = elsewhere(run, tmp_path / "a"), elsewhere(run, tmp_path / "b")
    collect(prepared.answerer, prepared.tasks, a)
    task = prepared.tasks[0]
    prepared.answerer.ask(task, task.items[:16], [("agla", 0), ("vote", 0)])
    collect_for(b.folder)
    assert len(contents(a.folder / "evidence")) > 3
    assert contents(a.folder / "evidence") == contents(b.folder / "evidence")


def test_the_local_view_is_the_one_that_the_method_sees(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    index = index_of(collect(prepared.answerer, prepared.tasks, elsewhere(run, tmp_path)))
    entry = next(entry for entry in index["items"] if entry["task"] == "world_pope")
    (view,) = entry["views"]
    asker: Any = prepared.answerer
    item = next(item for item in prepared.tasks[0].items if item.key == entry["key"])
    inputs = prepare(asker.processor, [item])
    options = {**PLAIN, "guard_execution": "batched", "max_new_tokens": 1, "return_dict_in_generate": True}
    seen = asker.model.generate(**inputs, **options, guard=asker.decoders["agla"].guard(0)).guard.view(0)
    local = seen.local
    black = (np.asarray(local.resize((288, 288))) == 0).all(-1)
    shown = np.asarray(Image.open(tmp_path / "evidence" / view["local"]).resize((288, 288)), dtype=int)
    # JPEG and scaling blur the border of the mask, so nearly all is asked for
    assert (shown[black].max(-1) < 60).mean() > 0.9
    assert (shown[~black].max(-1) < 25).mean() < 0.1
    assert view["kept"] == pytest.approx(float(seen.match.keep.float().mean()), abs=1e-4)


def test_no_picture_is_larger_than_320_and_one_that_cant_be_used_keeps_its_reason(
    run: Run, prepared: Prepared, tmp_path: Path
) -> None:
    own = elsewhere(run, tmp_path)
    shown = disagreements(own)["world_pope"].shown
    assert len(shown) > 1
    task = prepared.tasks[0]
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1200, 3), dtype=np.uint8))
    pictures: dict[str, Any] = {shown[0].key: wide, shown[1].key: tmp_path / "gone.jpg"}
    items = [dataclasses.replace(i, images=(pictures[i.key],)) if i.key in pictures else i for i in task.items]
    changed = [dataclasses.replace(task, items=items), *prepared.tasks[1:]]
    entries = {
        e["key"]: e for e in index_of(collect(prepared.answerer, changed, own))["items"] if e["task"] == task.name
    }
    first, second = entries[shown[0].key], entries[shown[1].key]
    assert {Image.open(tmp_path / "evidence" / first["views"][0][what]).size for what in ("picture", "map")} == {
        (320, 80)
    }
    assert "gone.jpg" in second["problem"]
    assert second["views"] == []
    assert all(max(Image.open(path).size) <= 320 for path in (tmp_path / "evidence").glob("*.jpg"))


def test_a_question_that_cant_be_matched_leaves_the_picture_alone(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    silent = [
        dataclasses.replace(
            task, items=[dataclasses.replace(item, prompt="...", question="...") for item in task.items]
        )
        for task in prepared.tasks
    ]
    entries = index_of(collect(prepared.answerer, silent, elsewhere(run, tmp_path)))["items"]
    assert entries
    assert all("No relevance map" in entry["problem"] for entry in entries if entry["task"] == "world_pope")
    assert all(set(entry["views"][0]) == {"picture"} for entry in entries if entry["task"] == "world_pope")


class Elsewhere:
    """Stands for an answerer of another kind, such as a server."""

    def ask(self, *_: object) -> list[Any]:
        raise AssertionError("nothing may be asked")


def test_a_server_gives_pictures_alone_and_the_index_says_so(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    index = index_of(collect(Elsewhere(), prepared.tasks, elsewhere(run, tmp_path)))
    assert "server" in index["maps"]
    assert {tuple(view) for entry in index["items"] for view in entry["views"]} == {("picture",)}


def test_without_a_method_that_cuts_a_view_the_matcher_shows_its_map(
    run: Run, prepared: Prepared, tmp_path: Path
) -> None:
    asker: Any = prepared.answerer
    alone = dataclasses.replace(asker, decoders={n: d for n, d in asker.decoders.items() if n in ("greedy", "vote")})
    index = index_of(collect(alone, prepared.tasks, elsewhere(run, tmp_path)))
    entry = next(entry for entry in index["items"] if entry["task"] == "world_pope")
    assert {"picture", "map"} <= set(entry["views"][0])
    assert "local" not in entry["views"][0]


def test_evidence_of_a_run_without_scores_is_refused(run: Run, tmp_path: Path) -> None:
    own = elsewhere(run, tmp_path)
    (own.folder / "results.json").unlink()
    with pytest.raises(GuardError, match="eval score"):
        collect_for(own.folder)


def pope_run(folder: Path, plain: str, ours: str, labels: str, each: int = 1) -> Run:
    words = {"y": "yes", "n": "no", "?": "perhaps"}
    task = runs.pope([words[x] for x in labels], each=each)
    return runs.saved(folder, task, {"greedy": [words[x] for x in plain], "agla": [words[x] for x in ours]})


def keys(run: Run, limit: int = 60, task: str = "world_pope") -> list[str]:
    return [one.key for one in disagreements(run, limit)[task].shown]


def test_an_item_is_fixed_or_broken_as_the_table_counts_it(tmp_path: Path) -> None:
    run = pope_run(tmp_path, "yynn?yy", "ynny?y?", "yyyynny")
    found = disagreements(run)["world_pope"]
    assert {one.key: one.standings["agla"] for one in found.shown} == {
        "1": "broken",
        "3": "fixed",
        "4": "unreadable",
        "6": "broken",
    }
    assert found.counts == {("agla", "broken"): 2, ("agla", "fixed"): 1, ("agla", "unreadable"): 1}
    row = run.results.difference("pope_random", "agla", "accuracy")
    assert row is not None
    assert (row["fixed"], row["broken"]) == (1, 2)


def test_new_pictures_come_before_further_questions_about_one(tmp_path: Path) -> None:
    assert keys(pope_run(tmp_path, "yyyyyy", "nnnnnn", "yyyyyy", each=3), 2) == ["0", "3"]


def test_every_outcome_gets_its_turn_and_the_limit_holds(tmp_path: Path) -> None:
    run = pope_run(tmp_path, "y" * 10 + "n", "n" * 10 + "y", "y" * 11)
    assert keys(run, 4) == ["0", "1", "2", "10"]
    assert len(keys(run)) == 11


def test_a_run_without_disagreement_shows_nothing(tmp_path: Path) -> None:
    assert keys(pope_run(tmp_path, "yn", "yn", "yn")) == []


@pytest.mark.parametrize("name", ["agla-random, clip", "apc(0.5)", "prompt-no"])
def test_controls_and_samples_are_not_what_a_run_is_about_whatever_they_are_called(name: str) -> None:
    decoders = [runs.decoder("greedy"), runs.decoder("sample"), runs.decoder(name, role="control")]
    decoders += [runs.decoder("agla-sample", sampled=True), runs.decoder("agla"), runs.decoder("tuned", role="adapter")]
    assert watched(decoders) == ["agla", "tuned"]
    assert watched(decoders[:-2]) == ["agla-sample"]
    assert watched(decoders[:3]) == ["sample", name]


def test_captions_are_compared_by_what_is_not_there_and_then_by_what_is(tmp_path: Path) -> None:
    task = runs.captions([["dog"], ["dog"], ["dog", "cat"], ["dog"]])
    plain = ["a dog and a bus", "a dog", "a dog and a cat", "a dog"]
    ours = ["a dog", "a dog and a cup", "a dog", "one dog"]
    run = runs.saved(tmp_path, task, {"greedy": plain, "vote": ours})
    shown = disagreements(run)["world_chair"].shown
    assert {one.key: one.standings["vote"] for one in shown} == {"0": "fixed", "1": "broken", "2": "changed"}
    assert keys(run, 2, "world_chair") == ["0", "1"]


def test_of_several_runs_half_must_agree(tmp_path: Path) -> None:
    ours = [["no", "yes", "yes"], ["no", "no", "yes"]]
    run = runs.saved(tmp_path, runs.pope(["yes", "yes"]), {"greedy": ["yes", "yes"], "agla": ours})
    assert keys(run) == ["1"]


def test_an_answer_that_only_its_task_can_judge_has_no_mark() -> None:
    task = {"name": "vqa", "kind": "stock"}
    said = judge(task, {"truth": "a red bus"}, {"text": "a bus"})
    assert (said.mark, said.merit) == ("", None)
    assert judge(task, {"truth": "Yes"}, {"text": "Yes."}).mark == "right"
