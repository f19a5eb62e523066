"""MME: the authors' evaluation on its golden file, the readings, and pairs that must be whole."""

import pytest

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import mme

GOLDEN = """\
a.jpg\tIs there a dog in this image? Please answer yes or no.\tYes\tYes
a.jpg\tIs there a cat in this image? Please answer yes or no.\tNo\tNo, there is no cat.
b.jpg\tIs there a car in this image? Please answer yes or no.\tYes\tThere is a car.
b.jpg\tIs there a bus in this image? Please answer yes or no.\tNo\tNo
c.jpg\tIs there a cup in this image? Please answer yes or no.\tYes\tyes.
c.jpg\tIs there a pan in this image? Please answer yes or no.\tNo\tYes
d.jpg\tIs there a bed in this image? Please answer yes or no.\tYes\tNot really
d.jpg\tIs there a tie in this image? Please answer yes or no.\tNo\tI know
"""


@pytest.fixture
def golden(tmp_path):
    path = tmp_path / "existence.txt"
    path.write_text(GOLDEN)
    return mme.read_answers(path)


def test_the_authors_evaluation_is_reproduced_on_the_golden_file(golden):
    found = mme.score(golden, "official")["tasks"]["existence"]
    counts = ("tp", "fn", "tn", "fp", "other", "accuracy", "accuracy_plus", "score", "questions", "pictures")
    assert [found[name] for name in counts] == [2, 1, 2, 1, 2, 0.5, 0.25, 75.0, 8, 4]
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3, abs=0)


def test_an_unreadable_answer_under_yes_is_a_miss_by_default(golden):
    found = mme.score(golden)["tasks"]["existence"]
    # "There is a car." and "I know" can't be read
    assert (found["tp"], found["fn"], found["tn"], found["fp"], found["other"]) == (2, 2, 2, 1, 2)
    assert found["recall"] == 0.5
    assert found["score"] == 75.0


@pytest.mark.parametrize(
    ("answer", "official", "stock", "ours"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("yes\n", "yes", "yes", "yes"),
        ("y", None, "yes", None),
        ("  yes", None, "yes", "yes"),
        ("   no", None, "no", "no"),
        ("  no", "no", "no", "no"),
        ("I know", None, None, None),
        ("Now I see a dog", "no", "no", None),
        ("...yes", None, "yes", "yes"),
        ("The answer is no", None, None, "no"),
        ("", None, None, None),
    ],
)
def test_readings(answer, official, stock, ours):
    assert (mme.read(answer, "official"), mme.read(answer, "stock"), mme.read(answer)) == (official, stock, ours)


def test_the_hallucination_subset_is_the_sum_of_its_four_tasks(golden):
    rows = [row | {"task": task} for task in (*mme.HALLUCINATION, "OCR") for row in golden]
    found = mme.score(rows)
    assert found["hallucination"] == 4 * 75.0
    assert found["score"] == 5 * 75.0
    assert mme.score(rows[:-16])["hallucination"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "'d.jpg' of existence has questions with the answers yes"),
        (lambda rows: [row | {"label": "Yes"} for row in rows], "answers yes, yes"),
        (lambda rows: [row | {"label": "maybe"} for row in rows], "label 'maybe'"),
        (lambda rows: [{"task": "existence", "picture": "a"}], "no 'label'"),
        (lambda rows: [row | {"answer": 3} for row in rows], "no text: 3"),
    ],
)
def test_rows_that_can_not_be_scored_are_named(golden, change, said):
    with pytest.raises(DataError, match=said):
        mme.score(change(golden))


def test_files_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        mme.read_answers(tmp_path)
    (tmp_path / "count.txt").write_text("a.jpg\tquestion\tYes\n")
    with pytest.raises(DataError, match=r"Line 1 of .*count\.txt has 3 parts"):
        mme.read_answers(tmp_path)
    (tmp_path / "count.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no row"):
        mme.read_answers(tmp_path)
    with pytest.raises(DataError, match="parity is 'pope'"):
        mme.read("yes", "pope")
