"""MME's hallucination subset from the authors' files: pairs kept whole, points summed, and bad files named."""

from dataclasses import replace

import pytest
from answered import answered
from PIL import Image

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.tasks import mme, tasks_of


@pytest.fixture
def settings(tmp_path):
    for task in mme.HALLUCINATION:
        (tmp_path / "pictures" / task).mkdir(parents=True)
        lines = []
        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGB", (96, 96), "green").save(tmp_path / "pictures" / task / name)
            lines += [f"{name}\tIs there a {word} in {task}?\t{gold}" for word, gold in (("dog", "Yes"), ("cat", "No"))]
        (tmp_path / f"{task}.txt").write_bytes("\r\n".join(lines).encode())
    return Settings(
        tasks=("mme_hallucination",),
        questions=(str(tmp_path),),
        images=str(tmp_path / "pictures"),
        methods=("vote",),
        controls=False,
        batch=8,
    )


def test_every_task_is_a_row_and_pictures_of_one_name_are_told_apart(settings):
    (task,) = tasks_of(settings)
    described = task.describe()
    assert described["rows"] == list(mme.HALLUCINATION)
    assert (described["n"], described["pictures"]) == (24, 12)
    assert len({item.key for item in task.items}) == 24
    assert task.items[1].prompt == "Is there a cat in existence?"
    assert task.items[1].truth == "no"


def test_a_limit_keeps_pairs_whole(settings):
    (task,) = tasks_of(replace(settings, limit=1))
    assert len(task.items) == 8


def test_points_of_answers_are_the_scorer_s(settings):
    (task,) = tasks_of(settings)
    said = {item.key: ("Yes", "No.", "no", "perhaps")[i % 4] for i, item in enumerate(task.items)}
    right = [pope.read(said[item.key]) == item.truth for item in task.items]
    pairs = [all(pair) for pair in zip(right[::2], right[1::2], strict=True)]  # three pictures a task
    points = 100 * (sum(right) / 6 + sum(pairs) / 3)
    found = answered([task], greedy=[lambda item: said[item.key]])
    row = find(found["rows"], "greedy", "mme_hallucination_all", "score")
    assert row["value"] == pytest.approx(points)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("\tYes", "\tPerhaps", 1), r"Line 1 of .*count\.txt"),
        (lambda t: t.replace("\t", " "), r"Line 1 of .*count\.txt"),
        (lambda t: t.replace("\tNo", "\tYes", 1), "answers yes, yes"),
        (lambda t: t.replace("b.png", "z.png"), r"1 of 12 pictures .* first is count/z\.png\. MME's are given"),
        (lambda t: "", "holds no question"),
    ],
)
def test_files_that_can_not_be_asked_are_named(settings, tmp_path, change, said):
    path = tmp_path / "count.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=said):
        tasks_of(settings)


def test_what_is_missing_is_told_before_any_model(settings):
    with pytest.raises(DataError, match=r"existence\.txt"):
        tasks_of(replace(settings, questions=()))
    with pytest.raises(DataError, match="pictures"):
        tasks_of(replace(settings, images=""))
    with pytest.raises(DataError, match="published test"):
        tasks_of(replace(settings, split="val"))
