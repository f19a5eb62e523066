"""A stock task over files of one's own: checked before any model is loaded, run by lmms-eval unchanged."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lvlm_guard.errors import UnknownNameError
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms.index import stock_files, stock_task
from lvlm_guard.evals.lmms.localize import localize, read_rows, write_rows


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(np.full((96, 96, 3), 60 * n, np.uint8)).save(folder / f"COCO_{n}.jpg")
    return folder


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "pope.json"
    rows = [
        {"question_id": n, "image": f"COCO_{n % 3}.jpg", "text": f"Is there a dog {n}?", "label": ("yes", "no")[n % 2]}
        for n in range(6)
    ]
    path.write_text("\r\n".join(map(json.dumps, rows)) + "\r\n")  # as two of the three published files are
    return path


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_pope_files_become_a_task_that_includes_the_stock_one(questions, images, tmp_path):
    made = localize("pope_adv", questions, tmp_path / "tasks", images=images)
    assert (made.name, made.documents) == ("pope_adv_local", 6)
    config = yaml.safe_load(made.task.read_text())
    assert config["include"] == str(stock_task("pope_adv")[0])
    assert config["dataset_name"] is None
    assert config["dataset_kwargs"]["data_files"] == {"adversarial": str(made.data)}
    row = read_rows(made.data)[4]
    assert row == {
        "id": "4",
        "question_id": "4",
        "question": "Is there a dog 4?",
        "answer": "yes",
        "image_source": "COCO_1",
        "category": "adversarial",
        "image": {"bytes": None, "path": str((images / "COCO_1.jpg").resolve())},
    }
    assert made.data.stat().st_size < 10_000, "pictures stay where they are"
    assert "none of the published POPE files" in made.notes[0]


def test_other_rows_keep_their_columns(images, tmp_path):
    rows = [
        {"question_id": 7, "image": "COCO_0.jpg", "gt_object": ["dog", "cat"]},
        {"question_id": 8, "image": "COCO_1.jpg", "gt_object": []},
    ]
    for data in (lines(tmp_path / "chair.jsonl", rows), tmp_path / "chair.json"):
        if data.suffix == ".json":
            data.write_text(json.dumps(rows))
        made = localize("coco_cap_chair", data, tmp_path / "tasks", images=images, name="my_chair")
        assert [(r["question_id"], r["gt_object"]) for r in read_rows(made.data)] == [(7, ["dog", "cat"]), (8, [])]
    assert made.name == "my_chair"


def test_parquet_that_holds_its_pictures_is_used_as_it_is(images, tmp_path):
    content = (images / "COCO_0.jpg").read_bytes()
    data = tmp_path / "mme.parquet"
    write_rows([{"question": "q", "answer": "Yes", "image": {"bytes": content, "path": None}}], data)
    made = localize("mme", data, tmp_path / "tasks")
    assert made.data == data
    assert made.documents == 1
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["mme_local.yaml"]


def test_stock_tasks_are_found_by_their_names_and_splits():
    splits = {name: stock_task(name)[1] for name in ("pope", "pope_adv", "pope_pop", "pope_random", "mme")}
    assert splits == {
        "pope": "test", "pope_adv": "adversarial", "pope_pop": "popular", "pope_random": "random", "mme": "test",
    }  # fmt: skip
    assert stock_task("amber_g")[1] == "train"
    assert len(stock_files()) > 1000


def test_an_unknown_task_suggests_the_nearest(questions, images, tmp_path):
    with pytest.raises(UnknownNameError, match=r"no task 'pope_advs'\. Did you mean 'pope_adv'"):
        localize("pope_advs", questions, tmp_path, images=images)


def test_a_task_whose_scores_would_mislead_is_refused(questions, images, tmp_path):
    with pytest.raises(DataError, match="hallusion_bench_image is not offered: an outside model judges"):
        localize("hallusion_bench_image", questions, tmp_path, images=images)


def test_a_stock_tasks_own_name_is_refused_because_lmms_eval_would_run_the_stock_task(questions, images, tmp_path):
    with pytest.raises(DataError, match="has a task 'pope' of its own"):
        localize("pope_adv", questions, tmp_path, images=images, name="pope")


def test_missing_pictures_are_counted_and_the_first_is_named(questions, images, tmp_path):
    (images / "COCO_1.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures are not in .*the first is COCO_1\.jpg"):
        localize("pope_adv", questions, tmp_path / "tasks", images=images)
    data = lines(tmp_path / "rows.jsonl", [{"image": "COCO_1.jpg", "gt_object": ["dog"]}])
    with pytest.raises(DataError, match=r"1 of 1 pictures .*the first is COCO_1\.jpg"):
        localize("coco_cap_chair", data, tmp_path / "tasks", images=images)
    assert not (tmp_path / "tasks").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"image": 3, "a": 1}], "Row 0 of .* has the image 3"),
        ([{"picture": "COCO_0.jpg"}], "has the image None"),
        ([{"image": "COCO_0.jpg", "a": 1}, {"image": "COCO_0.jpg"}], r"other fields than row 0 \(a\)"),
        ([[1, 2]], "Line 1 of .* is no row: 1"),
        ([], "holds no row"),
        ([{"question_id": 1, "image": "COCO_0.jpg", "text": "q", "label": "maybe"}], "'maybe'"),
    ],
)
def test_rows_that_cant_be_used_are_named(rows, match, images, tmp_path):
    data = lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=match):
        localize("pope", data, tmp_path, images=images)


def test_missing_files_and_folders_are_named(questions, images, tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        localize("pope", questions, tmp_path, images=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"give the folder"):
        localize("pope", questions, tmp_path)
    with pytest.raises(DataError, match=r"none\.json can't be read"):
        localize("pope", tmp_path / "none.json", tmp_path, images=images)
    with pytest.raises(DataError, match=r"none\.parquet"):
        localize("pope", tmp_path / "none.parquet", tmp_path)
    (tmp_path / "odd.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="can't be read as parquet"):
        localize("pope", tmp_path / "odd.parquet", tmp_path)
    (tmp_path / "odd.json").write_text("{not json")
    with pytest.raises(DataError, match=r"is no JSON|cut short"):
        localize("pope", tmp_path / "odd.json", tmp_path, images=images)


@pytest.mark.slow
def test_lmms_eval_runs_the_task_with_the_stock_prompt_and_scores(evaluate, questions, images, tmp_path):
    """The answers are those of our own asker to the stock prompt; 'Yes.' would be wrong, as stock POPE has it."""
    made = localize("pope_adv", questions, tmp_path / "tasks", images=images)
    result, samples = evaluate("pretrained=embedded,method=greedy", [made.name], include=[made.folder])
    found = {doc: sample["resps"][0][0] for doc, sample in samples[made.name].items()}
    assert found == own_answers(questions, images)
    right = [found[n].strip().lower() == ("yes", "no")[n % 2] for n in range(6)]
    assert result["results"][made.name]["pope_accuracy,none"] == np.mean(right)


def own_answers(questions, images):
    from lvlm_guard.evals.infer.generate import prepare_run
    from lvlm_guard.evals.spec.items import EvalTask, Item
    from lvlm_guard.evals.spec.settings import Settings

    suffix = "\nAnswer the question using a single word or phrase."
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    items = [Item(str(r["question_id"]), r["image"], r["text"] + suffix, (images / r["image"],)) for r in rows]
    task = EvalTask("pope_adv", "pope", items, 128)
    run = prepare_run(Settings(methods=("greedy",), controls=False, device="cpu"), [task])
    (said,) = run.answerer.ask(task, items, [("greedy", 0)])
    return {n: one.text for n, one in enumerate(said)}
