"""Result rows say what the scorers say, picture by picture and over seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.stats.bootstrap import per_picture
from lvlm_guard.evals.stats.results import (
    CHAIR_SCORES,
    POPE_SCORES,
    Measured,
    chair_counts,
    find,
    long_rows,
    pope_counts,
)

answered = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "No.", "maybe", "", "Yes, a dog"])
    ),
    min_size=1,
    max_size=60,
)


@given(answered)
def test_pope_scores_of_summed_counts_are_those_of_the_scorer(rows):
    pictures, labels, answers = (list(part) for part in zip(*rows, strict=True))
    counts = per_picture(pictures, pope_counts(labels, answers))[1].sum(0)
    scored = pope.score([{"question_id": i, "label": label, "answer": text} for i, (_, label, text) in enumerate(rows)])
    for metric, score in POPE_SCORES.items():
        assert score(counts) == pytest.approx(scored[metric])


def test_chair_scores_of_summed_counts_are_those_of_the_scorer():
    nouns = ["dog", "cat", "cup", "bus"]
    rng = np.random.default_rng(1)
    rows, objects = [], {}
    for picture in range(40):
        words = rng.choice(nouns, rng.integers(0, 5))
        rows.append({"image_id": picture, "caption": "the image shows " + " , ".join(f"a {w}" for w in words)})
        objects[picture] = set(rng.choice(nouns, rng.integers(0, 4), replace=False).tolist())
    counts = chair_counts(chair.compare(rows, objects, vocabulary=nouns)).sum(0)
    scored = chair.score(rows, objects, vocabulary=nouns)
    for metric in ("chair_s", "chair_i", "object_recall", "length"):
        assert CHAIR_SCORES[metric](counts) == pytest.approx(scored[metric])
    assert CHAIR_SCORES["repeats"](counts) == pytest.approx(scored["repeated_words"] / scored["object_words"])


def test_scores_of_many_draws_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    for scores, columns in ((POPE_SCORES, 5), (CHAIR_SCORES, 8)):
        table = rng.integers(0, 4, size=(30, columns)).astype(float)
        for score in scores.values():
            assert np.allclose(score(table), [score(row) for row in table])
            assert np.isfinite(score(np.zeros(columns)))


def test_rows_have_every_score_and_every_difference_with_its_test():
    rng = np.random.default_rng(3)
    task = Measured("pope_random", POPE_SCORES, 90)
    for name, right in (("greedy", 4), ("agla", 5), ("agla-random", 4)):
        hits = rng.binomial(3, right / 6, size=(15, 2))
        task.counts[name] = np.stack([hits[:, 0], 3 - hits[:, 1], hits[:, 1], 3 - hits[:, 0], np.full(15, 6)], 1)
    rows = long_rows("embedded", [task], "greedy", [("agla", "agla-random"), ("vote", "matcher")])
    plain = [row for row in rows if "p_value" not in row]
    assert len(plain) == 3 * len(POPE_SCORES)
    assert set(plain[0]) == {"model", "method", "task", "metric", "value", "low", "high", "n"}
    names = {row["method"] for row in rows if "p_value" in row}
    assert names == {"agla-greedy", "agla-random-greedy", "agla-agla-random"}
    difference = find(rows, "agla-greedy", "pope_random", "accuracy")
    ours, theirs = (find(rows, m, "pope_random", "accuracy")["value"] for m in ("agla", "greedy"))
    assert difference["value"] == pytest.approx(ours - theirs)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert 0 < difference["p_value"] <= 1
    assert all(row["n"] == 90 and row["model"] == "embedded" for row in rows)
    assert find(rows, "vote", "pope_random", "accuracy") is None
