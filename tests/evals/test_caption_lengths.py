"""CHAIR, F1 and text statistics of released captions of real models, to the printed digit, in three dialects."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from captions import read_captions
from hypothesis import given
from hypothesis import strategies as st
from runs import saved

from lvlm_guard.cli import main
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair, tokens
from lvlm_guard.evals.metrics.metric import Batch, Items
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.spec.answers import LIMITS
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.score import score

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
    scores = chair.score(read_captions(HAVE[name]), objects, dialect)
    check(scores, GOLDEN[name][dialect])
    assert scores["dialect"] == dialect
    check(scores, GOLDEN[name]["text"])


@pytest.mark.parametrize("name", [name for name in HAVE if "prefix" in GOLDEN[name]])
@pytest.mark.parametrize("words", [16, 32, 64, 96])
def test_captions_cut_short_score_as_recorded(name, words, objects):
    rows = read_captions(HAVE[name])
    short = [row | {"caption": " ".join(row["caption"].split()[:words])} for row in rows]
    check(chair.score(short, objects, "pattern"), GOLDEN[name]["prefix"][str(words)])
    if words == 64 and name == "llava-1.5/greedy":  # stopping early "wins" fourteen points of CHAIR_s
        whole, cut = (chair.score(these, objects)["chair_s"] for these in (rows, short))
        assert whole - cut > 0.13


WORDNET = {"CHAIRs": "chair_s", "CHAIRi": "chair_i", "Recall": "object_recall", "Precision": "precision", "F1": "f1"}


def check_wordnet(name, objects):
    scores = chair.score(read_captions(HAVE[name]), objects, "wordnet")
    assert scores["dialect"] == "wordnet"
    for theirs, ours in WORDNET.items():
        assert scores[ours] == pytest.approx(GOLDEN[name]["wordnet"][theirs], abs=1e-12), theirs


@pytest.mark.parametrize("name", ["llava-1.5/greedy", "minigpt4/ours"])
def test_the_dialect_of_opera_gives_its_published_table_from_the_words_that_nltk_gives(name, objects, monkeypatch):
    told = json.loads(gzip.decompress((DATA / "benchmarks" / "captions" / "nltk_lemmas.json.gz").read_bytes()))[name]
    of = {row["caption"]: told.split(" ") for row, told in zip(read_captions(HAVE[name]), told, strict=True)}
    monkeypatch.setattr(tokens, "lemmas", of.__getitem__)
    monkeypatch.setattr(tokens, "check", lambda what: None)
    coco_words.cache_clear()
    check_wordnet(name, objects)
    coco_words.cache_clear()


@pytest.mark.parametrize("name", HAVE)
def test_the_dialect_of_opera_gives_its_published_table_with_nltks_own_data(name, objects):
    try:
        tokens.check("this test")
    except DataError as error:
        pytest.skip(str(error))
    check_wordnet(name, objects)


def test_a_dialect_without_its_data_and_an_unknown_one_are_refused_clearly(monkeypatch):
    def missing(text):
        raise LookupError("Resource punkt_tab not found")

    monkeypatch.setattr(tokens, "tagged", missing)
    coco_words.cache_clear()
    with pytest.raises(DataError, match=r"nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"):
        chair.score([], {}, "wordnet")
    with pytest.raises(
        DataError, match=r"no dialect 'wordnets'; did you mean 'wordnet'\? Known: ours, pattern, wordnet"
    ):
        chair.score([], {}, "wordnets")
    with pytest.raises(DataError, match="leave out the vocabulary or the dialect"):
        chair.score([], {}, "wordnet", vocabulary=["dog"])


TEXT = "A dog. A dog. A dog. A dog."


@given(st.text(alphabet="ab .'’", max_size=60))
def test_distinct_words_and_repeated_fours_are_those_of_a_recount(text):
    # an apostrophe belongs to a word between letters alone
    words = re.sub("(?<![ab])['’]|['’](?![ab])|[.]", " ", text).split()
    fours = [tuple(words[i : i + 4]) for i in range(max(0, len(words) - 3))]
    distinct, any_words, repeated = chair.variety(text)
    assert repeated == (pytest.approx(1 - len(set(fours)) / len(fours)) if fours else 0)
    assert (distinct, any_words) == ((len(set(words)) / len(words), True) if words else (0, False))


def test_loops_cuts_and_empty_captions_are_counted():
    rows = [{"image_id": i, "caption": text} for i, text in enumerate([TEXT, "", "a man's hat"])]
    captions = chair.compare(rows, {0: ["dog"], 1: [], 2: ["person"]})
    table = np.array([chair.counts(caption) for caption in captions], float).sum(axis=0)
    values = {metric: float(score.of(table)) for metric, score in chair.SCORES.items()}
    assert values["repeat_4"] == pytest.approx((3 / 5) / 3)  # eight words, five fours, two of them different
    assert values["distinct_1"] == pytest.approx((2 / 8 + 1) / 2)  # the empty one has no words to vary
    assert values["empty"] == pytest.approx(1 / 3)
    assert values["f1"] == pytest.approx(1.0)


def test_a_caption_is_cut_where_its_row_of_answers_says():
    ends = [5, 9, 12, 27, 27]
    assert [chair.prefix(TEXT, ends, limit) for limit in LIMITS] == [TEXT[:end] for end in ends]
    with pytest.raises(DataError, match="not at 48"):
        chair.prefix(TEXT, ends, 48)
    with pytest.raises(DataError, match="its row of answers is damaged"):
        chair.prefix(TEXT, [5, 9, 12, 28, 28], 256)


def measured(task, truths, texts_, ended, cut_at):
    items = Items(
        keys=[str(i) for i in range(len(truths))],
        pictures=[str(i) for i in range(len(truths))],
        truths=truths,
        rows=[("chair",)] * len(truths),
    )
    metric = chair.Chair(task, items)
    sums = metric.count(Batch(np.arange(len(truths)), texts_, np.array(ended), cut_at)).sum(axis=0)
    return {name: (float(score.of(sums)), score.limit, score.dialect) for name, score in metric.scores().items()}


def test_one_run_gives_the_scores_of_every_limit_in_every_dialect(objects):
    rows = read_captions(HAVE["llava-1.5/greedy"])[:60]
    whole = [row["caption"] for row in rows]
    ends = [[len(" ".join(text.split()[:n])) for n in LIMITS] for text in whole]
    task = {"name": "chair", "kind": "chair", "max_new_tokens": 128, "about": {"dialects": ["ours", "pattern"]}}
    truths = [sorted(objects[row["image_id"]]) for row in rows]
    found = measured(task, truths, whole, [True] * 59 + [False], ends)
    pairs = list(zip(rows, ends, strict=True))
    for limit in (None, 32, 64, 128):
        short = [row | {"caption": chair.prefix(row["caption"], end, limit or 512)} for row, end in pairs]
        for dialect, suffix in (("ours", ""), ("pattern", "_official")):
            alone = chair.score(short, objects, dialect)
            for metric in chair.SCORES if dialect == "ours" else chair.DIALECTAL:
                name = f"{metric}{suffix}" + (f"@{limit}" if limit else "")
                assert found[name][1:] == (limit, dialect)
                if metric != "cut":
                    assert found[name][0] == pytest.approx(alone[metric]), name
    assert not any(name.endswith("@256") for name in found)  # the run had 128 tokens
    longer = sum(len(text.split()) > 64 for text in whole)
    assert found["cut@64"][0] == longer / 60
    assert found["cut"][0] == 1 / 60


def test_without_known_lengths_captions_are_scored_whole_and_dialects_need_no_vocabulary():
    task = {"name": "world_chair", "kind": "chair", "max_new_tokens": 64, "vocabulary": ["dog", "cat"]}
    found = measured(task, [["dog"], ["cat"]], ["a dog", "a dog"], [True, True], [None, None])
    assert found["chair_i"] == (0.5, None, "vocabulary")
    assert not any("@" in name or "official" in name for name in found)
    mixed = measured(task, [["dog"], ["cat"]], ["a dog", "a dog"], [True, True], [None, [5, 5, 5, 5, 5]])
    assert mixed["chair_i@32"][0] == 1.0  # of the one whose length is known


def test_a_run_is_scored_in_operas_dialect_on_demand_and_each_row_names_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "lemmas", lambda caption: caption.lower().split())
    monkeypatch.setattr(tokens, "check", lambda what: None)
    coco_words.cache_clear()
    items = [Item("1", "1.jpg", "describe", (), truth=["dog"], rows=("chair",))]
    saved(tmp_path / "run", EvalTask("chair", "chair", items, 64), {"greedy": ["a dog on a seat"]})
    rows = score(tmp_path / "run", dialects=["wordnet"])["rows"]
    assert {row["metric"]: row["dialect"] for row in rows if row["metric"].startswith("chair_i")} == {
        "chair_i": "ours",
        "chair_i_official": "pattern",
        "chair_i_wordnet": "wordnet",
    }
    coco_words.cache_clear()


def test_a_dialect_that_cannot_be_had_stops_a_run_before_anything_is_asked(tmp_path, monkeypatch, capsys):
    def missing(text):
        raise LookupError("Resource wordnet not found")

    monkeypatch.setattr(tokens, "tagged", missing)
    coco_words.cache_clear()
    for dialect, message in (("wordnet", "nltk.downloader"), ("wordnets", "did you mean 'wordnet'")):
        with pytest.raises(SystemExit) as stopped:
            main(["eval", "run", "--dialect", dialect, "--out", str(tmp_path / "out")])
        assert stopped.value.code
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()
