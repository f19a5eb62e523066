"""RePOPE's files are the user's own and known by their digests; stored answers are scored by their labels too."""

import hashlib
import json
from dataclasses import replace

import pyarrow as pa
import pytest
from runs import saved

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.tasks import repope

# two pictures, three questions each of every kind; a question that kinds share has its own number in each
ASKED = [
    (f"COCO_{p}.jpg", name, label) for p in (1, 2) for name, label in (("dog", "yes"), ("cat", "no"), ("ox", "no"))
]
# RePOPE turns the first over, and drops the second picture's ox in one kind
TURNED = {(0, "random"), (0, "adversarial")}
DROPPED = {(5, "adversarial")}
OTHER = {"yes": "no", "no": "yes"}


def question(name):
    return f"Is there {'an' if name == 'ox' else 'a'} {name} in the image?"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A made RePOPE of our own, taken for the published one."""
    inside = tmp_path / "RePOPE" / "annotations"
    inside.mkdir(parents=True)
    for split in ("random", "adversarial"):
        rows = [
            {
                "question_id": 10 * (split == "random") + n,
                "image": image,
                "text": question(name),
                "label": OTHER[label] if (n, split) in TURNED else label,
            }
            for n, (image, name, label) in enumerate(ASKED)
            if (n, split) not in DROPPED
        ]
        path = inside / f"coco_repope_{split}.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(repope.FILES, split, replace(repope.FILES[split], sha256=sha256))
    return inside.parent


def run(folder, **changes):
    items = [
        Item(
            f"{n}",
            image,
            question(name) + "\nOne word.",
            (),
            question=question(name).replace("image", "imange") if name == "ox" else question(name),
            truth=label,
            rows=("pope_random", "pope_adversarial"),
            tags={"data_set": "coco", "ids": {"pope_random": 10 + n, "pope_adversarial": n}},
        )
        for n, (image, name, label) in enumerate(ASKED)
    ]
    items[0] = replace(items[0], **changes)
    answers = {"greedy": ["Yes", "No", "No"] * 2, "other": ["No", "No", "No", "Yes", "Yes", "Yes"]}
    return saved(folder, EvalTask("pope_coco", "pope", items, 4), answers)


def test_stored_answers_are_scored_by_both_labels_side_by_side(tmp_path, folder):
    run(tmp_path / "run")
    results = score(tmp_path / "run", repope=folder)
    value = {
        (row["decoder"], row["task"]): row["value"]
        for row in results["rows"]
        if row["metric"] == "accuracy" and row["baseline"] is None
    }
    assert value["greedy", "pope_random"] == value["greedy", "pope_adversarial"] == 1.0
    assert value["greedy", "repope_random"] == pytest.approx(5 / 6)
    assert value["greedy", "repope_adversarial"] == pytest.approx(4 / 5)
    assert value["other", "repope_random"] == pytest.approx(4 / 6)
    assert value["other", "repope_adversarial"] == pytest.approx(4 / 5)
    assert find(results["rows"], "other", "repope_random", "accuracy", "greedy")["value"] == pytest.approx(-1 / 6)
    assert find(results["rows"], "greedy", "repope_adversarial", "accuracy")["n"] == 5
    assert find(results["rows"], "greedy", "repope_adversarial", "accuracy_official")["value"] == pytest.approx(4 / 5)
    assert any("dropped 1 of the 12 questions as ambiguous" in warning for warning in results["warnings"])
    # nothing of RePOPE is written into the run
    assert "repope" not in (tmp_path / "run" / "items.jsonl").read_text().lower()


def test_controls_are_chosen_on_popes_own_questions_of_no_test(folder):
    def item(name, split, truth, **more):
        return {"task": "pope_coco", "split": split, "item": name, "picture": "p", "truth": truth, **more}

    items = [
        item(f"{n}", "test", label, question=question(name), tags={"data_set": "coco", "ids": {"pope_random": 10 + n}})
        | {"picture": image}
        for n, (image, name, label) in enumerate(ASKED)
    ]
    items.append(item("held", "val", "yes", question="?", rows=["pope_random"]))
    answers = [{"task": "pope_coco", "split": row["split"], "item": row["item"]} for row in items]
    batches = [pa.RecordBatch.from_pylist(answers)]
    _, listed, copies, _ = repope.rescored(folder, [{"name": "pope_coco", "kind": "pope"}], items, batches)
    copied = [row for batch in copies for row in batch.to_pylist() if row["task"] == "repope"]
    labelled = {(row["split"], row["item"]) for row in listed if row["task"] == "repope"}
    assert {(row["split"], row["item"]) for row in copied} == labelled
    assert ("val", "held") in labelled
    assert len(copied) == 7


def test_answers_to_other_questions_are_refused(tmp_path, folder):
    run(tmp_path / "run", question="Is there a car in the image?")
    with pytest.raises(DataError, match=r"Question 10 of POPE random is 'Is there a car in the image\?'"):
        score(tmp_path / "run", repope=folder)
    run(tmp_path / "run", tags={"data_set": "coco", "ids": {"pope_random": 10}})
    with pytest.raises(DataError, match="1 questions of RePOPE were not answered, the first of them 0 of adversarial"):
        score(tmp_path / "run", repope=folder)
    run(tmp_path / "other", tags={})
    (tmp_path / "other" / "items.jsonl").write_text(
        (tmp_path / "other" / "items.jsonl").read_text().replace('"coco"', '"gqa"')
    )
    with pytest.raises(DataError, match="none of them was asked here"):
        score(tmp_path / "other", repope=folder)


def test_a_file_of_pope_or_another_one_is_not_taken_for_repopes(tmp_path, folder):
    from pathlib import Path

    pope = Path(__file__).parents[1] / "data" / "pope" / "coco_pope_random.json.gz"
    (folder / "annotations" / "coco_repope_random.json").write_bytes(pope.read_bytes())
    with pytest.raises(DataError, match=r"is POPE's file \(coco random\), not RePOPE's"):
        repope.repope_labels(folder, ["random"])
    (folder / "annotations" / "coco_repope_random.json").write_text("{}\n")
    with pytest.raises(DataError, match="is not RePOPE's file at the commit bcf22e5"):
        repope.repope_labels(folder, ["random"])
    with pytest.raises(DataError, match=r"holds no coco_repope_popular.json. RePOPE has no licence"):
        repope.repope_labels(folder, ["popular"])
