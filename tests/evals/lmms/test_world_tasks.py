"""The embedded world's tasks as they are shipped: rebuilt from the drawer, found in the package, scored as ours."""

import io

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms import TASKS, scoring
from lvlm_guard.evals.lmms.localize import read_rows
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.tasks.world import NOUNS
from tests.support import pope_scores, world_files


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


@pytest.mark.parametrize(
    ("name", "drawn"), [(world_files.POPE, world_files.pope_rows), (world_files.CHAIR, world_files.chair_rows)]
)
def test_the_shipped_files_are_what_the_drawer_draws(name, drawn):
    shipped = read_rows(TASKS / name)
    rows = drawn()
    assert len(shipped) == len(rows) > 0
    for there, now in zip(shipped, rows, strict=True):
        # compressed bytes differ between versions of zlib; the pictures do not
        assert np.array_equal(pixels(there), pixels(now))
        assert {**there, "image": None} == {**now, "image": None}


def test_the_shipped_files_are_small_and_package_data():
    import tomllib
    from pathlib import Path

    import lvlm_guard

    root = Path(lvlm_guard.__file__).resolve().parents[1]
    suffixes = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert {"**/*.yaml", "**/*.parquet"} <= set(suffixes)
    assert sum(path.stat().st_size for path in TASKS.iterdir()) < 500_000


def test_the_files_have_the_columns_of_the_stock_tasks():
    import datasets

    pope_features = datasets.Dataset.from_parquet(str(TASKS / world_files.POPE)).features
    assert {"id", "question_id", "question", "answer", "image_source", "image", "category"} <= pope_features.keys()
    chair_features = datasets.Dataset.from_parquet(str(TASKS / world_files.CHAIR)).features
    assert {"question_id", "image", "gt_object"} <= chair_features.keys()
    assert isinstance(pope_features["image"], datasets.Image)


def test_the_shipped_tasks_say_where_their_documents_come_from():
    """Document n of the file is item n of `world_pope`, so that sampling draws alike."""
    from lvlm_guard.evals.spec.settings import Settings
    from lvlm_guard.evals.tasks import tasks_of

    asked, captioned = tasks_of(Settings(limit=world_files.PICTURES, captions=world_files.CAPTIONS))
    rows = read_rows(TASKS / world_files.POPE)
    assert {i.key: (i.prompt, i.truth, i.picture) for i in asked.items} == {
        i.key: (rows[int(i.key)]["question"], rows[int(i.key)]["answer"], rows[int(i.key)]["image_source"])
        for i in asked.items
    }
    rows = read_rows(TASKS / world_files.CHAIR)
    assert [(i.prompt, i.truth) for i in captioned.items] == [(r["question"], r["gt_object"]) for r in rows]


ANSWERS = ["yes", "no", "No.", "perhaps", "", "Yes, there is"]


def test_answers_are_scored_as_our_pope_does():
    documents = [
        {"question_id": str(n), "answer": "yes" if n % 2 else "no", "image_source": str(n // 3)}
        for n in range(len(ANSWERS))
    ]
    rows = [scoring.pope_results(d, [a]) for d, a in zip(documents, ANSWERS, strict=True)]
    ours = pope_scores.score(
        {"question_id": d["question_id"], "label": d["answer"], "answer": a}
        for d, a in zip(documents, ANSWERS, strict=True)
    )
    for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert getattr(scoring, metric)([row[metric] for row in rows]) == pytest.approx(ours[metric], abs=1e-15)
    assert scoring.unreadable([row["unreadable"] for row in rows]) == 2 / 6
    for metric in ("accuracy", "yes_ratio", "unreadable"):
        mean = np.mean([row[metric]["score"] for row in rows])
        assert mean == pytest.approx(getattr(scoring, metric)([row[metric] for row in rows]))
    assert "score" not in rows[0]["f1"], "lmms-eval would make its error bar of another metric's score"


def test_a_label_that_is_neither_yes_nor_no_is_an_error():
    with pytest.raises(DataError, match="'maybe'"):
        scoring.pope_results({"question_id": "1", "answer": "maybe", "image_source": "1"}, ["yes"])


def test_captions_are_scored_as_our_chair_does():
    captions = ["the image shows a train , a backpack .", "the image shows a couch , a cat .", ""]
    truths = [["train", "backpack"], ["couch"], ["clock"]]
    rows = [
        scoring.chair_results({"image_source": str(n), "gt_object": truth}, [caption])
        for n, (caption, truth) in enumerate(zip(captions, truths, strict=True))
    ]
    ours = chair.score(
        [{"image_id": n, "caption": c} for n, c in enumerate(captions)], dict(enumerate(truths)), vocabulary=NOUNS
    )
    for metric in ("chair_s", "chair_i", "object_recall", "length"):
        assert getattr(scoring, metric)([row[metric] for row in rows]) == ours[metric]
    assert ours["chair_i"] == 1 / 4
