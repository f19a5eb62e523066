"""CHAIR, F1 and text statistics of released captions of real models, to the printed digit, in three dialects."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import captions as texts
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.spec.answers import LIMITS

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "benchmarks" / "chair_lengths.json").read_text())["files"]
HAVE = {name: DATA / "benchmarks" / "captions" / f"opera_{name.replace('/', '_')}.jsonl.gz" for name in GOLDEN}
HAVE = {name: path for name, path in HAVE.items() if path.exists()}
SAME = {
    "recall": "object_recall",
    "recalled": "recalled_objects",
    "generated": "objects",
    "ground_truth": "ground_truth_objects",
    "repeated": "repeated_words",
}


@pytest.fixture(scope="module")
def objects():
    return chair.read_objects(DATA / "chair" / "gt_objects.json.gz")


def check(scores, gold):
    for key, value in gold.items():
        if key != "words":
            assert scores[SAME.get(key, key)] == pytest.approx(value, abs=1e-12), key
    assert scores["words"] == pytest.approx(scores["length"] * scores["captions"])


@pytest.mark.parametrize("name", HAVE)
@pytest.mark.parametrize("dialect", ["pattern", "ours"])
def test_released_captions_of_real_models_score_as_recorded(name, dialect, objects):
    scores = chair.score(chair.read_captions(HAVE[name]), objects, dialect)
    check(scores, GOLDEN[name][dialect])
    assert scores["dialect"] == dialect
    check(scores, GOLDEN[name]["text"])


@pytest.mark.parametrize("name", [name for name in HAVE if "prefix" in GOLDEN[name]])
@pytest.mark.parametrize("words", [16, 32, 64, 96])
def test_captions_cut_short_score_as_recorded(name, words, objects):
    rows = chair.read_captions(HAVE[name])
    short = [row | {"caption": " ".join(row["caption"].split()[:words])} for row in rows]
    check(chair.score(short, objects, "pattern"), GOLDEN[name]["prefix"][str(words)])
    if words == 64 and name == "llava-1.5/greedy":  # stopping early "wins" fourteen points of CHAIR_s
        whole, cut = (chair.score(these, objects)["chair_s"] for these in (rows, short))
        assert whole - cut > 0.13
