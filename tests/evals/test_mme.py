"""MME: the authors' evaluation on its golden file, the readings, points of tasks, and pairs that must be whole."""

import numpy as np
import pytest
import scoring

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.stats.results import find

GOLDEN = [  # as the authors' files have it: two questions a picture
    ("a.jpg", "yes", "Yes"),
    ("a.jpg", "no", "No, there is no cat."),
    ("b.jpg", "yes", "There is a car."),
    ("b.jpg", "no", "No"),
    ("c.jpg", "yes", "yes."),
    ("c.jpg", "no", "Yes"),
    ("d.jpg", "yes", "Not really"),
    ("d.jpg", "no", "I know"),
]


def scored(rows, texts, **more):
    """Score answers to rows of (row task, picture, label)."""
    items = [scoring.item(i, picture, label, [task], kind="mme") for i, (task, picture, label) in enumerate(rows)]
    return scoring.of_texts(items, texts, kind="mme", allowed=scoring.Allowed(empty=1), draws=50, **more)["rows"]


def test_the_authors_evaluation_is_reproduced_on_the_golden_file_and_ours_reads_whole_words():
    found = scored([("existence", *row[:2]) for row in GOLDEN], {"greedy": [said for *_, said in GOLDEN]})
    value = {row["metric"]: row["value"] for row in found}
    assert value["score_official"] == 75.0  # accuracy .5, a quarter of the pairs
    # "There is a car." and "I know" can't be read; the first is a miss
    assert (value["score"], value["accuracy"], value["accuracy_plus"]) == (75.0, 0.5, 0.25)
    assert (value["unreadable"], value["precision"], value["recall"]) == (0.25, pytest.approx(2 / 3), 0.5)


@pytest.mark.parametrize(
    ("answer", "official", "ours"),
    [
        ("Yes", "yes", "yes"),
        ("yes\n", "yes", "yes"),
        ("y", None, None),
        ("  yes", None, "yes"),
        ("   no", None, "no"),
        ("  no", "no", "no"),
        ("I know", None, None),
        ("Now I see a dog", "no", None),
        ("...yes", None, "yes"),
        ("The answer is no", None, "no"),
        ("", None, None),
    ],
)
def test_readings(answer, official, ours):
    assert (pope.read(answer, "mme"), pope.read(answer)) == (official, ours)


def test_points_of_tasks_are_summed_and_shares_pooled():
    rng = np.random.default_rng(2)
    rows = [(task, f"{task}{i // 2}", ("yes", "no")[i % 2]) for task in ("existence", "count") for i in range(20)]
    texts = {name: [str(word) for word in rng.choice(["Yes", "No", "maybe"], 40)] for name in ("greedy", "agla")}
    found = scored(rows, texts)
    total = 0.0
    for task in ("existence", "count"):
        right = np.array(
            [pope.read(said) == row[2] for said, row in zip(texts["agla"], rows, strict=True) if row[0] == task]
        )
        points = 100 * (right.mean() + right.reshape(-1, 2).all(axis=1).mean())
        assert find(found, "agla", task, "score")["value"] == pytest.approx(points)
        total += points
    assert find(found, "agla", "quiz_all", "score")["value"] == pytest.approx(total)
    assert find(found, "agla", "quiz_all", "accuracy")["n"] == 40
    change = find(found, "agla", "quiz_all", "score", "greedy")
    assert change["low"] <= change["value"] <= change["high"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "'d.jpg' of existence has questions with the answers yes"),
        (lambda rows: [(picture, "yes", text) for picture, _, text in rows], "answers yes, yes"),
        (lambda rows: [(picture, "maybe", text) for picture, _, text in rows], "truth 'maybe'"),
    ],
)
def test_rows_that_can_not_be_scored_are_named(change, said):
    rows = change(GOLDEN)
    with pytest.raises(DataError, match=said):
        scored([("existence", *row[:2]) for row in rows], {"greedy": [text for *_, text in rows]})
