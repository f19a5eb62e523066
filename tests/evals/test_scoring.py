"""Rows are what the scorers say of the answers; differences are what scipy and statsmodels say."""

import json

import numpy as np
import pytest
import scoring
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.spec.answers import table_of
from lvlm_guard.evals.stats import bootstrap
from lvlm_guard.evals.stats import score as module
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import score_answers
from tests.support import pope_scores

WORDS = ("Yes", "No", "yes, a dog", "There is not a dog", "", "cannot say", "Yes. No.")
EASY = module.Allowed(empty=1, truncated=1)


def quiz(n=200, seed=0):
    """Items of two kinds, some of both, and what greedy, agla and three seeds of sampling say."""
    rng = np.random.default_rng(seed)
    kinds = (["pope_random"], ["pope_popular"], ["pope_random", "pope_popular"])
    items = [scoring.item(i, i // 4, ("yes", "no")[i % 2], kinds[i % 3]) for i in range(n)]
    texts = {name: [str(word) for word in rng.choice(WORDS, n)] for name in ("greedy", "agla")}
    return items, texts | {"sample": [[str(word) for word in rng.choice(WORDS, 3)] for _ in range(n)]}


def rows_of(items, texts, **more):
    return scoring.of_texts(items, texts, allowed=EASY, **more)["rows"]


READINGS = {"": "word", "_official": "official", "_agla": "agla"}


@pytest.mark.parametrize(("suffix", "reading"), READINGS.items())
def test_every_reading_of_pope_is_the_scorer_s(suffix, reading):
    items, texts = quiz()
    rows = rows_of(items, texts, draws=50)
    for task in ("pope_random", "pope_popular"):
        mine = [i for i, item in enumerate(items) if task in item["rows"]]
        told = [{"question_id": i, "label": items[i]["truth"], "answer": texts["agla"][i]} for i in mine]
        expected = pope_scores.score(told, reading)
        for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            row = find(rows, "agla", task, metric + suffix)
            assert row["value"] == pytest.approx(expected[metric], abs=1e-15), metric
            assert row["n"] == len(mine)
    assert find(rows, "greedy", "pope_random", "label_yes")["value"] == pytest.approx(0.5, abs=0.02)
    assert find(rows, "agla", "pope_random", "label_yes") is None  # the same for all


def test_questions_that_kinds_share_count_in_each_and_all_is_the_pool_of_kinds():
    items, texts = quiz()
    rows = rows_of(items, texts, draws=50)
    n = {task: find(rows, "greedy", task, "accuracy")["n"] for task in ("pope_random", "pope_popular", "pope_all")}
    assert n["pope_all"] == n["pope_random"] + n["pope_popular"] == sum(len(item["rows"]) for item in items)


def test_several_seeds_are_the_mean_of_the_seeds():
    items, texts = quiz()
    rows = rows_of(items, texts, draws=50)
    each = [
        find(
            rows_of(items, {"greedy": [said[seed] for said in texts["sample"]]}, draws=50),
            "greedy",
            "pope_all",
            "accuracy",
        )
        for seed in range(3)
    ]
    assert find(rows, "sample", "pope_all", "accuracy")["value"] == pytest.approx(
        np.mean([row["value"] for row in each])
    )
    assert "fixed" not in find(rows, "sample", "pope_all", "accuracy", "greedy")


def test_fixed_and_broken_are_those_of_statsmodels_table():
    items, texts = quiz()
    row = find(rows_of(items, texts, draws=50), "agla", "pope_all", "accuracy", "greedy")
    right = {
        name: np.array([pope.read(said) == item["truth"] for said, item in zip(texts[name], items, strict=True)])
        for name in ("greedy", "agla")
    }
    table = [[int((a & b).sum()) for b in (right["greedy"], ~right["greedy"])] for a in (right["agla"], ~right["agla"])]
    assert (row["fixed"], row["broken"]) == (table[0][1], table[1][0])
    assert row["p"] == pytest.approx(mcnemar(table, exact=True).pvalue, abs=0.2)


def test_the_interval_over_pictures_is_that_of_scipy():
    items, texts = quiz(400)
    row = find(rows_of(items, texts), "agla", "pope_random", "accuracy", "greedy")
    mine = [i for i, item in enumerate(items) if "pope_random" in item["rows"]]
    pictures = sorted({items[i]["picture"] for i in mine})
    gain = np.zeros((len(pictures), 2))
    for i in mine:
        hits = [pope.read(texts[name][i]) == items[i]["truth"] for name in ("agla", "greedy")]
        gain[pictures.index(items[i]["picture"])] += (hits[0] - hits[1], 1)
    found = stats.bootstrap(
        (gain[:, 0], gain[:, 1]),
        lambda a, n, axis: a.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert row["low"] == pytest.approx(found.low, abs=0.008)
    assert row["high"] == pytest.approx(found.high, abs=0.008)
    assert row["pictures"] == len(pictures)


def captions(n=40, seed=1):
    rng = np.random.default_rng(seed)
    nouns = ["dog", "cat", "cup", "bus", "tie"]
    items = [scoring.item(i, i, sorted(set(rng.choice(nouns, 2).tolist())), ["chair"], kind="chair") for i in range(n)]
    return items, {name: [f"a {' and a '.join(rng.choice(nouns, 3))} ." for _ in items] for name in ("greedy", "vote")}


@pytest.mark.parametrize("vocabulary", [None, ("dog", "cat", "cup", "bus", "tie")])
def test_chair_is_the_scorer_s_with_its_directions(vocabulary):
    items, texts = captions()
    rows = rows_of(items, texts, kind="chair", task={"vocabulary": vocabulary}, draws=50)
    told = [{"image_id": i, "caption": text} for i, text in enumerate(texts["vote"])]
    expected = chair.score(told, {i: item["truth"] for i, item in enumerate(items)}, vocabulary=vocabulary)
    for metric, direction in (("chair_s", "lower"), ("chair_i", "lower"), ("object_recall", "higher"), ("length", "")):
        row = find(rows, "vote", "chair", metric)
        assert (row["value"], row["direction"]) == (pytest.approx(expected[metric]), direction), metric


def test_several_methods_are_adjusted_for_being_several():
    rows = rows_of(*quiz())
    found = [find(rows, name, "pope_all", "accuracy", "greedy") for name in ("agla", "sample")]
    smaller, larger = sorted(found, key=lambda row: row["p"])
    assert smaller["p_holm"] == pytest.approx(min(1, 2 * smaller["p"]))
    assert larger["p_holm"] == pytest.approx(max(smaller["p_holm"], larger["p"]))


def test_neither_the_order_of_answers_nor_that_of_items_matters():
    items, texts = quiz(60)
    answers = [
        scoring.answer(item, name, said)
        for name in ("greedy", "agla")
        for item, said in zip(items, texts[name], strict=True)
    ]
    told = [scoring.decoder("greedy"), scoring.decoder("agla")]
    one = scoring.scored(items, answers, told, allowed=EASY, draws=60)
    shuffled = [answers[i] for i in np.random.default_rng(0).permutation(len(answers))]
    assert scoring.scored(items[::-1], shuffled, told, allowed=EASY, draws=60)["rows"] == one["rows"]


def test_ranked_metrics_are_scikit_learns_and_all_is_the_mean_over_kinds_and_never_pooled():
    items, answers, scores, yes = scoring.questions()
    rows = scoring.scored(items, answers, [scoring.decoder("greedy")], draws=300)["rows"]
    each = [roc_auc_score(yes[kind::2], scores[kind::2].astype(np.float32)) for kind in (0, 1)]
    for task, expected in zip(("pope_random", "pope_popular"), each, strict=True):
        assert find(rows, "greedy", task, "auroc")["value"] == pytest.approx(expected, abs=1e-12)
    row = find(rows, "greedy", "pope_all", "auroc")
    assert row["value"] == pytest.approx(np.mean(each), abs=1e-12)
    assert abs(row["value"] - roc_auc_score(yes, scores)) > 0.005  # the pool is another number
    assert row["low"] < row["value"] < row["high"]
    kinds = [find(rows, "greedy", task, "accuracy_matched")["value"] for task in ("pope_random", "pope_popular")]
    assert find(rows, "greedy", "pope_all", "accuracy_matched")["value"] == pytest.approx(np.mean(kinds))
    assert find(rows, "greedy", "pope_all", "mass")["value"] == pytest.approx(0.9)


def test_the_drawn_ranking_is_that_of_pictures_written_out():
    items, answers, scores, yes = scoring.questions(60, rows=("quiz", "quiz"))
    row = find(
        scoring.scored(items, answers, [scoring.decoder("greedy")], draws=200)["rows"], "greedy", "quiz", "auroc"
    )
    weights = np.concatenate(list(bootstrap.Draws(10, draws=200)._weights()))[1:]
    picture, written = np.arange(60) // 6, []
    for times in weights.astype(int):
        again = np.repeat(np.arange(60), times[picture])
        written.append(roc_auc_score(yes[again], scores[again].astype(np.float32)))
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(written, [2.5, 97.5])))


def test_answers_that_turned_are_counted_against_greedy():
    items = [scoring.item(i, i, label) for i, label in enumerate(["yes", "yes", "no", "no", "no"])]
    texts = {"greedy": ["No", "Yes", "No", "Yes", "what"], "agla": ["Yes", "Yes", "Yes", "No", "Yes"]}
    rows = rows_of(items, texts, draws=50)
    n2p, p2n, way = (find(rows, "agla", "quiz", metric, "greedy")["value"] for metric in ("n2p", "p2n", "one_wayness"))
    assert (n2p, p2n, way) == (2, 1, pytest.approx(1 / 3))
    assert find(rows, "agla", "quiz", "n2p") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"censored": True}, "the server told too little for 3 of 240 scores"),
        ({"mass": 0.0, "every": 2}, "yes and no hold 0.45 of the probability"),
        ({"score": None, "mass": None}, "3 of 240 answers have no score"),
    ],
)
def test_scores_that_can_not_be_ranked_give_no_auroc_and_a_warning(change, told):
    items, answers, *_ = scoring.questions()
    every = change.pop("every", 0)
    rows = [vars(one) | (change if (i % every == 0 if every else i < 3) else {}) for i, one in enumerate(answers)]
    found = scoring.scored(items, rows, [scoring.decoder("greedy")], draws=20)
    for metric in ("auroc", "accuracy_matched", "tilt"):
        row = find(found["rows"], "greedy", "pope_all", metric)
        assert (row["value"], row["low"]) == (None, None)
    assert find(found["rows"], "greedy", "pope_all", "accuracy")["value"] > 0.5
    assert any(told in warning for warning in found["warnings"])


def test_few_censored_scores_are_ranked_and_their_number_told():
    items, answers, *_ = scoring.questions()
    rows = [vars(one) | {"censored": i < 2} for i, one in enumerate(answers)]
    found = scoring.scored(items, rows, [scoring.decoder("greedy")], draws=20)
    assert find(found["rows"], "greedy", "pope_all", "auroc")["value"] > 0.5
    assert any("2 scores are bounds" in warning for warning in found["warnings"])


def test_without_one_class_auroc_and_balanced_accuracy_are_not_there_and_a_warning_says_why():
    items, answers, *_ = scoring.questions()
    only = [(item, one) for item, one in zip(items, answers, strict=True) if item["truth"] == "no"]
    found = scoring.scored([i for i, _ in only], [a for _, a in only], [scoring.decoder("greedy")], draws=20)
    for metric in ("auroc", "accuracy_matched", "balanced_accuracy"):
        assert find(found["rows"], "greedy", "pope_all", metric)["value"] is None
    assert "pope_random: all labels are no, so there is no AUROC (n/a)." in found["warnings"]
    json.dumps(found, allow_nan=False)


def test_scores_before_and_after_a_cut_are_not_compared():
    items, answers, *_ = scoring.questions()
    _, cut, *_ = scoring.questions(name="agla")
    rows = [vars(one) | ({"score": float("-inf")} if i < 9 else {}) for i, one in enumerate(cut)]
    told = [scoring.decoder("greedy"), scoring.decoder("agla")]
    with pytest.raises(DataError, match="both kinds of score: those of agla are after a cut"):
        scoring.scored(items, [*answers, *rows], told)
    alone = scoring.scored(items, rows, told[1:], draws=20)["rows"]
    assert find(alone, "agla", "pope_all", "auroc")["value"] > 0.5


def test_trainings_have_their_values_apart_and_nothing_of_two_is_bold():
    items, texts = quiz(120)
    texts = {"greedy": texts["greedy"], "tuned": [[str(i % 2 == 0), item["truth"]] for i, item in enumerate(items)]}
    adapters = {"tuned": {"adapters": ["one", "two"], "role": "adapter"}}
    rows = rows_of(items, texts, described=adapters, draws=100)
    row = find(rows, "tuned", "pope_all", "accuracy")
    assert row["trainings"] == [0.0, 1.0]
    assert row["value"] == 0.5
    change = find(rows, "tuned", "pope_all", "accuracy", "greedy")
    assert (change["bold"], change["high"] - change["low"] > 6) == (False, True)  # t of one degree of freedom
    seeds = find(rows_of(items, texts, draws=100), "tuned", "pope_all", "accuracy", "greedy")
    assert seeds["high"] - seeds["low"] < 0.5


def test_the_share_on_yes_and_no_is_that_of_the_row_s_own_questions():
    items = [scoring.item(i, i, ("yes", "no")[i // 2 % 2], [f"pope_{('random', 'popular')[i % 2]}"]) for i in range(40)]
    mass = (0.9, 0.7)
    answers = [
        scoring.answer(item, "greedy", "Yes", score=float(i - 19.5), mass=mass[i % 2]) for i, item in enumerate(items)
    ]
    rows = scoring.scored(items, answers, [scoring.decoder("greedy")], draws=50)["rows"]
    told = [find(rows, "greedy", f"pope_{row}", "mass")["value"] for row in ("random", "popular", "all")]
    assert told == pytest.approx([0.9, 0.7, 0.8])


def test_a_row_name_that_two_tasks_share_is_told_apart():
    items = [scoring.item(i, i, "yes", ["chair"], task=task) for task in ("one", "two") for i in range(4)]
    rows = rows_of(items, {"greedy": ["Yes"] * 8}, draws=20)
    assert {row["task"] for row in rows} == {"chair@one", "chair@two"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda items, answers: (items, [*answers, answers[3]]), "greedy has two answers to item '3' of quiz"),
        (lambda items, answers: (items[:-1], answers), "an answer to item '7' of quiz, which is not among its items"),
        (lambda items, answers: ([*items, items[0]], answers), "Item '0' of quiz stands twice"),
        (lambda items, answers: ([items[0] | {"truth": "perhaps"}, *items[1:]], answers), "must be 'yes' or 'no'"),
        (
            lambda items, answers: (items, [vars(answers[0]) | {"task": "x"}]),
            "answers to x .test., of which no item",
        ),
    ],
)
def test_what_can_not_be_scored_is_named(change, said):
    items = [scoring.item(i, i // 2, ("yes", "no")[i % 2]) for i in range(8)]
    items, answers = change(items, [scoring.answer(item, "greedy", "Yes") for item in items])
    with pytest.raises(DataError, match=said):
        scoring.scored(items, answers, [scoring.decoder("greedy")])


def test_a_kind_that_is_unknown_is_named_with_those_that_are():
    with pytest.raises(DataError, match="'quizz'; known are pope, mme"):
        rows_of(*quiz(4), kind="quizz")
    with pytest.raises(DataError, match="No decoder is listed"):
        score_answers(table_of([]), [], [], [])
    items = [scoring.item(0, 0, "yes")]
    with pytest.raises(DataError, match="answered by agla, which is none of the listed"):
        scoring.scored(items, [scoring.answer(items[0], "agla", "Yes")], [scoring.decoder("greedy")])
