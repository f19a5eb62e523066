"""A tilt moves the threshold and no more; a better ranker ranks better; controls are chosen on other pictures."""

import numpy as np
import pytest
import scoring

from lvlm_guard.evals.spec.answers import table_of
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.tally import tallies_of
from lvlm_guard.evals.stats.verdict import controls_of, word_of

YES, NO = "Yes", "No"


def simulated(seed, n=720, per=6, bias=1.2, signal=1.0):
    """Questions of a model that says yes too often, and what a tilt and a better ranker make of them."""
    rng = np.random.default_rng(seed)
    yes = rng.random(n) < 0.5
    picture = np.repeat(rng.normal(size=n // per), per) * 0.3
    true = np.where(yes, signal, -signal)
    noise = rng.normal(size=n)
    base = true + picture + noise + bias
    scores = {
        "greedy": base,
        "tilted": base - bias,
        "ranker": true + picture + 0.6 * noise + 0.3 * rng.normal(size=n) + bias,
        "same": true + picture + 0.98 * noise + 0.2 * rng.normal(size=n) + bias,
        "noisier": base + 1.5 * rng.normal(size=n),
    }
    items = [scoring.item(i, i // per, "yes" if y else "no", ["pope_random"]) for i, y in enumerate(yes)]
    answers = [
        scoring.answer(item, name, YES if s > 0 else NO, score=float(s), mass=0.95)
        for name, found in scores.items()
        for item, s in zip(items, found.astype(np.float32), strict=True)
    ]
    return items, answers, [scoring.decoder(name) for name in scores]


def words(results):
    return {one["decoder"]: one["verdict"] for one in results["verdicts"]}


@pytest.mark.slow
def test_a_tilt_moves_the_threshold_and_a_better_ranker_ranks_better_in_95_of_100_simulations():
    right = dict.fromkeys(("tilted", "ranker", "same", "noisier"), 0)
    expected = {"tilted": "moves the threshold", "ranker": "ranks better", "same": "", "noisier": "ranks worse"}
    for seed in range(100):
        found = words(scoring.scored(*simulated(seed), draws=100))
        for name in right:
            right[name] += found[name] == expected[name] if expected[name] else found[name] != "ranks better"
    assert right["tilted"] >= 95
    assert right["ranker"] >= 95
    assert right["same"] >= 95  # no better ranker is taken for one
    assert right["noisier"] >= 95


def row(low, high, baseline="greedy"):
    return {"value": (low + high) / 2, "low": low, "high": high, "baseline": baseline}


UP, DOWN, FLAT = row(0.01, 0.03), row(-0.03, -0.01), row(-0.01, 0.01)


@pytest.mark.parametrize(
    ("accuracy", "matched", "auroc", "sampled", "word"),
    [
        (UP, FLAT, FLAT, None, "moves the threshold"),
        (UP, DOWN, DOWN, None, "moves the threshold"),
        (UP, UP, UP, None, "ranks better"),
        (FLAT, UP, UP, None, "ranks better"),
        (UP, UP, FLAT, None, "not told apart"),
        (UP, FLAT, UP, None, "moves the threshold"),
        (FLAT, DOWN, FLAT, None, "ranks worse"),
        (DOWN, FLAT, DOWN, None, "ranks worse"),
        (DOWN, UP, DOWN, None, "not told apart"),
        (FLAT, FLAT, FLAT, None, "not told apart"),
        (DOWN, FLAT, FLAT, None, "not told apart"),
        (DOWN, FLAT, FLAT, UP, "sharper"),
        (UP, FLAT, FLAT, UP, "moves the threshold"),
        (FLAT, UP, UP, UP, "ranks better"),
        (FLAT, FLAT, FLAT, FLAT, "not told apart"),
    ],
)
def test_the_rule(accuracy, matched, auroc, sampled, word):
    assert word_of(accuracy, matched, auroc, sampled) == word


def decoders():
    control = {"role": "control", "method": None}
    return [
        scoring.decoder("greedy"),
        scoring.decoder("sample"),
        scoring.decoder("prompt-no", **control),
        scoring.decoder("tilt", **control, derive="tilt"),
        scoring.decoder("olm", **control, derive="olm"),
        scoring.decoder("agla-random", **control | {"control_of": "agla"}),
        scoring.decoder("sample-matched", **control, baseline="sample"),
        scoring.decoder("agla"),
        scoring.decoder("sample-agla", method="agla", baseline="sample"),
    ]


def test_the_best_control_is_of_the_same_decoding_and_not_another_methods_own():
    """Calibration answers of controls that are right more and more often."""
    listed = [*decoders(), scoring.decoder("vote")]
    val = [scoring.item(i, i, "yes", split="val") for i in range(10)]
    shares = {"prompt-no": 7, "tilt": 8, "agla-random": 9, "sample-matched": 6, "greedy": 10}
    answers = [
        scoring.answer(item, name, YES if i < right else NO)
        for name, right in shares.items()
        for i, item in enumerate(val)
    ]
    task = {"name": "quiz", "kind": "pope", "split": "test"}
    tally = tallies_of(table_of(answers), val, [task], frozenset())["quiz", "val"]
    pairs, best = controls_of(tally, listed)
    assert [best[name] for name in ("agla", "vote", "sample-agla")] == ["agla-random", "tilt", "sample-matched"]
    assert ("vote", "tilt") in pairs
    assert ("vote", "prompt-no") not in pairs
    # without calibration items: each of them, and none is the best
    pairs, best = controls_of(None, listed)
    assert best == {}
    assert {theirs for ours, theirs in pairs if ours == "vote"} == {"prompt-no", "tilt", "olm"}
    assert {theirs for ours, theirs in pairs if ours == "sample-agla"} == {"sample-matched"}


KINDS = ("pope_random", "pope_popular", "pope_adversarial")


def test_the_best_control_weighs_an_item_by_how_many_row_tasks_it_counts_in():
    val = [scoring.item("there", "p", "yes", KINDS, split="val")]
    val += [scoring.item(kind, "p", "no", [kind], split="val") for kind in KINDS[:2]]
    answers = [scoring.answer(item, name, text) for name, text in (("prompt-no", NO), ("tilt", YES)) for item in val]
    task = {"name": "quiz", "kind": "pope", "split": "test"}
    tally = tallies_of(table_of(answers), val, [task], frozenset())["quiz", "val"]
    assert controls_of(tally, decoders())[1]["agla"] == "tilt"  # right in 3 of 5, though of 3 items 2 are no


def test_the_tilt_weighs_an_item_by_how_many_row_tasks_it_counts_in():
    val = [scoring.item("there", "v", "yes", KINDS, split="val")]
    val += [scoring.item(kind, "v", "no", [kind], split="val") for kind in KINDS]
    items = [*val, scoring.item("a", "p", "yes", KINDS), scoring.item("b", "q", "no", KINDS)]
    scores = (0.1, 1.0, 2.0, 3.0, 1.5, 1.5)
    answers = [scoring.answer(i, "greedy", YES, score=s, mass=0.9) for i, s in zip(items, scores, strict=True)]
    results = scoring.scored(items, answers, [one for one in decoders() if one["name"] in ("greedy", "tilt")], draws=20)
    # half of the labels are yes, as they count: the border is 0.55; of the four items it would be 2.5
    assert find(results["rows"], "tilt", "pope_random", "yes_ratio")["value"] == 1.0


def calibrated(n=1200, per=6):
    """A run with calibration items: greedy says yes too often, agla says no more often and ranks no better."""
    rng = np.random.default_rng(5)
    answers, items = [], []
    for split, size in (("test", n), ("val", n // 2)):
        yes = rng.random(size) < 0.5
        base = np.where(yes, 1.0, -1.0) + rng.normal(size=size) + 1.2
        asked = [
            scoring.item(i, f"{split}{i // per}", "yes" if y else "no", ["pope_random"], split=split)
            for i, y in enumerate(yes)
        ]
        items += asked
        for name, scores in (("greedy", base), ("prompt-no", base - 0.3), ("agla", base - 1.0)):
            if split == "test" or name != "agla":
                answers += [
                    vars(scoring.answer(item, name, YES if s > 0 else NO, score=float(np.float32(s)), mass=0.95))
                    | {"role": next(d["role"] for d in decoders() if d["name"] == name)}
                    for item, s in zip(asked, scores, strict=True)
                ]
    return items, answers


def test_tilt_and_olm_follow_from_greedys_scores_and_a_claim_is_held_against_the_best_control():
    items, answers = calibrated()
    told = [d for d in decoders() if d["name"] in ("greedy", "prompt-no", "tilt", "olm", "agla")]
    found = scoring.scored(items, answers, told, draws=300)
    rows = found["rows"]
    assert found["void"] == []
    assert words(found)["agla"] == words(found)["tilt"] == words(found)["prompt-no"] == "moves the threshold"
    # the labels' share on calibration items was fitted; agla's whole gain is a tilt's
    assert find(rows, "tilt", "pope_random", "yes_ratio")["value"] == pytest.approx(0.5, abs=0.03)
    assert find(rows, "tilt", "pope_random", "auroc", "greedy")["value"] == 0.0
    assert find(rows, "tilt", "pope_random", "tilt")["value"] == pytest.approx(0.0, abs=0.2)
    assert (
        find(rows, "olm", "pope_random", "yes_ratio")["value"]
        > find(rows, "greedy", "pope_random", "yes_ratio")["value"]
    )
    (verdict,) = [one for one in found["verdicts"] if one["decoder"] == "agla"]
    assert verdict["best_control"] == "tilt"
    held = find(rows, "agla", "pope_random", "accuracy", "tilt")
    assert held["low"] < 0 < held["high"] or held["high"] < 0
    assert "Against tilt, the best control on calibration items, accuracy" in verdict["sentence"]
    assert {row["split"] for row in rows} == {"test"}
    assert find(rows, "agla", "pope_random", "accuracy")["n"] == 1200


def test_without_calibration_items_tilt_is_left_out_and_no_control_is_chosen():
    items, answers = calibrated()
    told = [d for d in decoders() if d["name"] in ("greedy", "prompt-no", "tilt", "agla")]
    items, answers = ([row for row in rows if row["split"] == "test"] for rows in (items, answers))
    found = scoring.scored(items, answers, told, draws=50)
    assert any("tilt is left out: there are no calibration items" in warning for warning in found["warnings"])
    assert find(found["rows"], "tilt", "pope_random", "accuracy") is None
    (verdict,) = [one for one in found["verdicts"] if one["decoder"] == "agla"]
    assert verdict["best_control"] is None
    assert "no calibration items" in verdict["sentence"]


def test_a_sampled_guard_that_gains_on_sampling_alone_is_sharper():
    rng = np.random.default_rng(2)
    yes = rng.random(1200) < 0.5
    scores = np.where(yes, 1.0, -1.0) + rng.normal(size=1200)
    items = [scoring.item(i, i // 6, "yes" if y else "no", ["pope_random"]) for i, y in enumerate(yes)]
    said = {"greedy": scores > 0, "sample": rng.random(1200) < 1 / (1 + np.exp(-scores))}
    said["sample-agla"] = rng.random(1200) < 1 / (1 + np.exp(-3 * scores))
    answers = [
        scoring.answer(item, name, YES if word else NO, score=float(s), mass=0.95)
        for name, of in said.items()
        for item, word, s in zip(items, of, scores.astype(np.float32), strict=True)
    ]
    found = scoring.scored(items, answers, [d for d in decoders() if d["name"] in said], draws=200)
    (verdict,) = found["verdicts"]
    assert (verdict["decoder"], verdict["verdict"]) == ("sample-agla", "sharper")
    assert "against sample." in verdict["sentence"]
