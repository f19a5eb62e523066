"""Evidence is collected from a real run of the embedded model over a few pictures."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.evals.decoders.decoder import PLAIN
from lvlm_guard.evals.infer.generate import prepare
from lvlm_guard.evals.infer.prepare import Prepared, prepare_run
from lvlm_guard.evals.infer.run import run
from lvlm_guard.evals.report.disagreement import disagreements, judge, standings, watched
from lvlm_guard.evals.report.evidence import Chosen, choose, collect
from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.evals.spec.settings import Settings
from tests.support import runs

SETTINGS = Settings(methods=("agla", "vote"), limit=6, captions=6, seeds=1, batch=64, controls=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return run(SETTINGS, tmp_path_factory.mktemp("run"), report=False, workers=1, bar=False, echo=lambda _: None)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare_run(SETTINGS)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return found


def test_the_same_run_gives_the_same_bytes_whatever_was_matched_before(
    saved: Saved, prepared: Prepared, tmp_path: Path
) -> None:
    chosen = choose(saved.samples, saved.run, limit=6)
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path / "a")
    task = prepared.tasks[0]
    prepared.answerer.ask(task, task.items[:16], [("agla", 0), ("vote", 0)])
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path / "b")
    assert len(contents(tmp_path / "a")) > len(chosen)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_local_view_is_the_one_that_the_method_sees(saved: Saved, prepared: Prepared, tmp_path: Path) -> None:
    (chosen,) = (one for one in choose(saved.samples, saved.run, limit=1) if one.task == "world_pope")
    collect(prepared.answerer, prepared.tasks, [chosen], tmp_path)
    (view,) = index_of(tmp_path)["items"][0]["views"]
    asker: Any = prepared.answerer
    item = next(item for item in prepared.tasks[0].items if item.key == chosen.key)
    inputs = prepare(asker.processor, [item])
    asker.model.generate(
        **inputs, **PLAIN, guard=asker.decoders["agla"].guard(0), guard_execution="batched", max_new_tokens=1
    )
    local = inputs["guard_views"].views()[0].local
    black = (np.asarray(local.resize((288, 288))) == 0).all(-1)
    shown = np.asarray(Image.open(tmp_path / view["local"]).resize((288, 288)), dtype=int)
    # JPEG and scaling blur the border of the mask, so nearly all is asked for
    assert (shown[black].max(-1) < 60).mean() > 0.9
    assert (shown[~black].max(-1) < 25).mean() < 0.1
    assert view["kept"] == pytest.approx(float(inputs["guard_views"].views()[0].match.keep.float().mean()), abs=1e-4)


def test_finished_evidence_is_not_made_again_and_what_is_missing_or_another_is(
    saved: Saved, prepared: Prepared, tmp_path: Path
) -> None:
    chosen = choose(saved.samples, saved.run, limit=4)
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path)
    before = contents(tmp_path)
    pictures = sorted(path for path in tmp_path.iterdir() if path.suffix == ".jpg")
    stamps = {path: path.stat().st_mtime_ns for path in pictures}
    pictures[0].unlink()
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path)
    assert contents(tmp_path) == before
    stem = pictures[0].name[:12]
    made_again = {path.name[:12] for path in pictures if path.stat().st_mtime_ns != stamps[path]}
    assert made_again == {stem}
    collect(prepared.answerer, prepared.tasks, chosen[:1], tmp_path)
    left = {path.name[:12] for path in tmp_path.iterdir() if path.suffix == ".jpg"}
    assert len(left) == 1


def test_a_damaged_index_is_made_anew(saved: Saved, prepared: Prepared, tmp_path: Path) -> None:
    chosen = choose(saved.samples, saved.run, limit=2)
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 1, "items": [{"task"')
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path)
    assert contents(tmp_path) == before


def test_no_picture_is_larger_than_320(saved: Saved, prepared: Prepared, tmp_path: Path) -> None:
    task = prepared.tasks[0]
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1200, 3), dtype=np.uint8))
    big = dataclasses.replace(task, items=[dataclasses.replace(task.items[0], images=(wide,))])
    collect(prepared.answerer, [big], [Chosen(task.name, task.items[0].key)], tmp_path)
    sizes = {path.name: Image.open(path).size for path in tmp_path.glob("*.jpg")}
    assert set(sizes.values()) == {(320, 80)}
    assert len(sizes) == 3


def test_an_unusable_picture_keeps_its_reason_and_the_others_their_maps(
    saved: Saved, prepared: Prepared, tmp_path: Path
) -> None:
    task = prepared.tasks[0]
    gone = dataclasses.replace(task.items[0], images=(tmp_path / "gone.jpg",))
    broken = dataclasses.replace(task, items=[gone, *task.items[1:]])
    chosen = [Chosen(task.name, item.key) for item in broken.items[:2]]
    collect(prepared.answerer, [broken], chosen, tmp_path / "evidence")
    first, second = index_of(tmp_path / "evidence")["items"]
    assert "gone.jpg" in first["problem"]
    assert first["views"] == []
    assert second["views"][0]["map"]


def test_a_question_that_cant_be_matched_leaves_the_picture_alone(prepared: Prepared, tmp_path: Path) -> None:
    task = prepared.tasks[0]
    silent = dataclasses.replace(task, items=[dataclasses.replace(task.items[0], prompt="...", question="...")])
    collect(prepared.answerer, [silent], [Chosen(task.name, task.items[0].key)], tmp_path)
    (entry,) = index_of(tmp_path)["items"]
    assert "No relevance map" in entry["problem"]
    assert set(entry["views"][0]) == {"picture"}


class Elsewhere:
    """Stands for an answerer of another kind, such as a server."""

    def ask(self, *_: object) -> list[Any]:
        raise AssertionError("nothing may be asked")


def test_a_server_gives_pictures_alone_and_the_index_says_so(saved: Saved, prepared: Prepared, tmp_path: Path) -> None:
    chosen = choose(saved.samples, saved.run, limit=2)
    collect(Elsewhere(), prepared.tasks, chosen, tmp_path)
    index = index_of(tmp_path)
    assert "server" in index["maps"]
    assert [set(view) for entry in index["items"] for view in entry["views"]] == [{"picture"}] * len(chosen)


def test_without_a_method_that_cuts_a_view_the_matcher_shows_its_map(prepared: Prepared, tmp_path: Path) -> None:
    asker: Any = prepared.answerer
    alone = dataclasses.replace(asker, decoders={n: d for n, d in asker.decoders.items() if n in ("greedy", "vote")})
    item = prepared.tasks[0].items[0]
    collect(alone, prepared.tasks, [Chosen("world_pope", item.key)], tmp_path)
    (entry,) = index_of(tmp_path)["items"]
    assert {"picture", "map"} <= set(entry["views"][0])
    assert "local" not in entry["views"][0]
    (support,) = entry["support"]
    assert support["probability"] == pytest.approx(
        float(asker.matcher.support(item.pictures()[0], [item.prompt])[0]), abs=1e-3
    )


def test_captions_show_where_an_object_named_in_vain_would_be(saved: Saved, prepared: Prepared, tmp_path: Path) -> None:
    chosen = [one for one in choose(saved.samples, saved.run) if one.objects]
    assert chosen
    collect(prepared.answerer, prepared.tasks, chosen, tmp_path)
    for one, entry in zip(chosen, index_of(tmp_path)["items"], strict=True):
        assert entry["views"][0]["sought"] == one.objects[0]
        assert (tmp_path / entry["views"][0]["sought_map"]).is_file()
        assert [told["object"] for told in entry["support"]] == list(one.objects)


def pope_run(tmp_path: Path, plain: str, ours: str, labels: str, each: int = 1, **more: Any) -> Saved:
    words = {"y": "yes", "n": "no", "?": "perhaps"}
    task = runs.pope([words[x] for x in labels], each=each)
    return runs.saved(tmp_path, task, {"greedy": [words[x] for x in plain], "agla": [words[x] for x in ours]}, **more)


def test_an_item_is_fixed_or_broken_as_the_table_counts_it(tmp_path: Path) -> None:
    found = pope_run(tmp_path, "yynn?yy", "ynny?y?", "yyyynny")
    told = {s["key"]: standings(found.run["tasks"][0], s, found.run).get("agla") for s in found.samples}
    assert told == {"0": None, "1": "broken", "2": None, "3": "fixed", "4": "unreadable", "5": None, "6": "broken"}
    row = next(r for r in found.run["rows"] if r["method"] == "agla-greedy" and r["metric"] == "accuracy")
    assert (row["fixed"], row["broken"]) == (1, 2)


def test_new_pictures_come_before_further_questions_about_one(tmp_path: Path) -> None:
    found = pope_run(tmp_path, "yyyyyy", "nnnnnn", "yyyyyy", each=3)
    assert [one.key for one in choose(found.samples, found.run, limit=2)] == ["0", "3"]


def test_every_outcome_gets_its_turn_and_the_limit_holds(tmp_path: Path) -> None:
    found = pope_run(tmp_path, "y" * 10 + "n", "n" * 10 + "y", "y" * 11)
    chosen = choose(found.samples, found.run, limit=4)
    assert [one.key for one in chosen] == ["0", "1", "2", "10"]
    assert len(choose(found.samples, found.run)) == 11


def test_a_void_run_and_one_without_disagreement_show_nothing(tmp_path: Path) -> None:
    same = pope_run(tmp_path / "same", "yn", "yn", "yn")
    assert choose(same.samples, same.run) == []
    other = pope_run(tmp_path / "other", "yn", "ny", "yn")
    assert len(choose(other.samples, other.run)) == 2
    assert choose(other.samples, other.run | {"status": "void"}) == []


def test_controls_and_samples_are_not_what_a_run_is_about(tmp_path: Path) -> None:
    task = runs.pope(["yes", "no"])
    said = {name: ["yes", "no"] for name in ("greedy", "sample", "apc", "agla", "agla-sample", "agla-random")}
    more = {
        "agla-sample": {"method": "agla", "sampled": True},
        "agla-random": {"method": "agla", "control_of": "agla"},
        "apc": {"sampled": True},
    }
    found = runs.saved(tmp_path, task, said, decoders=more)
    assert watched(found.run) == ["agla"]


def test_captions_are_compared_by_what_is_not_there_and_then_by_what_is(tmp_path: Path) -> None:
    task = runs.captions([["dog"], ["dog"], ["dog", "cat"], ["dog"]])
    plain = ["a dog and a bus", "a dog", "a dog and a cat", "a dog"]
    ours = ["a dog", "a dog and a cup", "a dog", "one dog"]
    found = runs.saved(tmp_path, task, {"greedy": plain, "vote": ours})
    told = {
        sample["key"]: its
        for _, place, its in disagreements(found.samples, found.run)
        if (sample := found.samples[place])
    }
    assert told == {"0": {"vote": "fixed"}, "1": {"vote": "broken"}, "2": {"vote": "changed"}}
    assert choose(found.samples, found.run, limit=2) == [
        Chosen("world_chair", "0", ("bus",)),
        Chosen("world_chair", "1", ("cup",)),
    ]


def test_of_several_runs_half_must_agree(tmp_path: Path) -> None:
    task = runs.pope(["yes", "yes"])
    ours = [["no", "yes", "yes"], ["no", "no", "yes"]]
    found = runs.saved(tmp_path, task, {"greedy": ["yes", "yes"], "agla": ours})
    told = [standings(found.run["tasks"][0], sample, found.run) for sample in found.samples]
    assert told == [{}, {"agla": "broken"}]


def test_an_answer_that_only_its_task_can_judge_has_no_mark() -> None:
    task = {"name": "vqa", "kind": "stock"}
    sample = {"task": "vqa", "truth": "a red bus", "answers": {"greedy": ["a bus"]}}
    (said,) = judge(task, sample, "greedy")
    assert (said.mark, said.merit) == ("", None)
    (said,) = judge(task, sample | {"truth": "Yes", "answers": {"greedy": ["Yes."]}}, "greedy")
    assert said.mark == "right"
