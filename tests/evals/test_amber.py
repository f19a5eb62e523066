"""AMBER against what its script printed for the same answers and captions."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import amber, pope, tokens, yes_no
from lvlm_guard.evals.metrics.metric import Batch, Items, metric_of
from lvlm_guard.evals.tasks import amber as amber_files

DATA = Path(__file__).parents[1] / "data" / "benchmarks" / "amber"
QUESTIONS = json.loads((DATA / "golden_discriminative.json").read_text())["sets"]
GOLDEN = json.loads((DATA / "golden_generative.json").read_text())
ANNOTATIONS = json.loads(gzip.decompress((DATA / "annotations.json.gz").read_bytes()))
RELATION = json.loads((DATA / "relation.json").read_text())
SAFE = (DATA / "safe_words.txt").read_text().split()
WORDS = amber.Words(RELATION, frozenset(SAFE))
ORDER = ("hallucinated", "counted", "covered", "annotated", "cognitive", "distractors", "clean")


def items_of(truths, rows=("amber",)):
    keys = [str(n) for n in range(len(truths))]
    return Items(keys=keys, pictures=keys, truths=truths, rows=[rows] * len(keys))


def batch_of(texts):
    return Batch(np.arange(len(texts)), texts, np.ones(len(texts), bool), [None] * len(texts))


def printed_of(answers, block="all"):
    """Return what AMBER's script prints of a block of questions, percent."""
    kept = [row for row in answers if block == "all" or block in amber.BLOCKS[row["type"]]]
    counts = [yes_no.counts(pope.read(row["response"], "amber"), row["truth"] == "yes") for row in kept]
    # attributes are summed of three types, each with a denominator that starts at a thousandth
    small = amber.SMALL * (3 if block == "attribute" else 1)
    return dict(zip(amber.SCRIPT, amber.official(np.sum(counts, axis=0), small).tolist(), strict=True))


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_score_as_the_script_printed_them(name):
    for block, values in QUESTIONS[name]["printed"].items():
        ours = {"Descriminative Task": "all", "Exsitence": "existence"}.get(block, block.lower())
        assert {k.lower(): v for k, v in values.items()} == printed_of(QUESTIONS[name]["answers"], ours), block


def test_result_rows_hold_the_scripts_scores_and_sound_ones_beside_them():
    answers = QUESTIONS["mixed"]["answers"]
    metric = metric_of("amber")({"name": "amber", "kind": "amber"}, items_of([a["truth"] for a in answers]))
    sums = metric.count(batch_of([a["response"] for a in answers])).sum(axis=0)
    found = {name: float(s.of(sums)) for name, s in metric.scores().items() if not s.only_differences}
    script = printed_of(answers)
    assert {f"{k}_official": pytest.approx(v / 100) for k, v in script.items()} == {
        name: value for name, value in found.items() if name.endswith("_official")
    }
    # "Yes, it is." and "no" are read by us; the positive class is no
    said = [{"Yes": "yes", "No": "no", "no": "no", "Yes, it is.": "yes", "": None}[a["response"]] for a in answers]
    gold = [a["truth"] for a in answers]
    right = [s == g for s, g in zip(said, gold, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["precision"] == pytest.approx(
        np.mean([g == "no" for s, g in zip(said, gold, strict=True) if s == "no"])
    )
    assert found["recall"] == pytest.approx(np.mean([r for r, g in zip(right, gold, strict=True) if g == "no"]))
    assert found["no_ratio"] == pytest.approx(said.count("no") / len(said))
    assert found["unreadable"] == pytest.approx(said.count(None) / len(said))


def test_saying_no_to_everything_wins_f1_and_balanced_accuracy_shows_it():
    asked = [row for row in ANNOTATIONS if row["type"] != "generative"]
    assert len(asked) == 14_216
    always = [{**row, "response": "No"} for row in asked]
    assert (printed_of(always)["accuracy"], printed_of(always)["f1"]) == (66.3, 79.7)
    assert printed_of(always, "existence")["f1"] == 100.0
    metric = amber.Amber({"name": "amber"}, items_of([row["truth"] for row in asked]))
    sums = metric.count(batch_of(["No"] * len(asked))).sum(axis=0)
    assert float(metric.scores()["balanced_accuracy"].of(sums)) == 0.5


def test_a_caption_is_no_yes_no_question():
    with pytest.raises(DataError, match="is of the type 'generative'"):
        amber_files.rows_of({"id": 1, "type": "generative"})


def similar(mode):
    table = {frozenset(pair[:2]): pair[2] for pair in GOLDEN["similarity_table"]} if mode == "table" else {}
    return lambda a, b: a == b or table.get(frozenset((a, b)), 0.0) > amber.ALIKE


@pytest.mark.parametrize("mode", ["exact", "table"])
def test_captions_match_as_the_script_matched_them_caption_by_caption(mode):
    total = np.zeros(8)
    for case in GOLDEN["captions"]:
        counts = amber.match_official(case["nouns"], case["truth"], case["hallu"], WORDS, similar(mode))
        assert dict(zip(ORDER, counts, strict=False)) == {k: case[mode][k] for k in ORDER}, case["id"]
        total += counts
    assert np.round(100 * amber.shares(total, amber.SMALL), 1).tolist() == list(GOLDEN[mode]["printed"].values())


def test_nouns_are_those_of_nltk_where_its_data_are():
    try:
        tokens.check("this test")
    except DataError as error:
        pytest.skip(str(error))
    for case in GOLDEN["captions"]:
        assert amber.nouns(case["caption"]) == case["nouns"]


def test_the_class_gives_official_scores_from_a_table_and_lexical_ones_without_anything(tmp_path, monkeypatch):
    of = {case["caption"]: case["nouns"] for case in GOLDEN["captions"]}
    monkeypatch.setattr(amber, "nouns", of.__getitem__)
    monkeypatch.setattr(tokens, "check", lambda what: None)
    (tmp_path / "alike.json").write_text(json.dumps(GOLDEN["similarity_table"]))
    about = {"association": RELATION, "safe_words": SAFE, "similarity": str(tmp_path / "alike.json")}
    truths = [{"truth": case["truth"], "hallu": case["hallu"]} for case in GOLDEN["captions"]]
    task = {"name": "amber_captions", "about": about}
    metric = metric_of("amber_captions")(task, items_of(truths))
    sums = metric.count(batch_of([case["caption"] for case in GOLDEN["captions"]])).sum(axis=0)
    found = {name: round(100 * float(score.of(sums)), 1) for name, score in metric.scores().items()}
    printed = GOLDEN["table"]["printed"]
    assert [found[f"amber_{name}_official"] for name in ("chair", "cover", "hal", "cog")] == list(printed.values())
    task["about"] = about | {"similarity": ""}
    assert "amber_chair_official" not in metric_of("amber_captions")(task, items_of(truths)).scores()
    (tmp_path / "alike.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="is no table of words alike"):
        amber.similar_of(tmp_path / "alike.json")


def lexical(caption, truth, hallu):
    return dict(zip(ORDER, amber.match_lexical(caption, truth, hallu, WORDS), strict=False))


def test_lexical_matching_repairs_what_the_script_reads_wrongly():
    # capitals, TV, a plural, a word that NLTK tags as an adjective; ground of [grass, ground] is itself
    found = lexical("Sky and a TV. Two chopsticks on the ground.", ["sky", "grass", "ground"], ["tv", "chopsticks"])
    assert found == dict(zip(ORDER, (2, 4, 2, 3, 2, 2, 0), strict=True))
    # safe words and "can" count nowhere, also among what is annotated
    found = lexical("The light can shine on a camera.", ["light", "man"], ["camera"])
    assert found == dict(zip(ORDER, (0, 0, 0, 1, 0, 0, 1), strict=True))
    assert lexical("", ["sky", "sky"], ["sun"])["annotated"] == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(set(RELATION) - set(SAFE) - {"can", "hot"})), max_size=8), st.data())
def test_naming_exactly_what_is_annotated_is_clean_and_covers_it_all(truth, data):
    order = data.draw(st.permutations(truth))
    found = lexical(" . ".join(order), truth, ["zebra"])
    assert found["hallucinated"] == 0
    assert found["covered"] == found["annotated"] == len(set(truth))


def test_a_table_of_words_alike_is_written_from_vectors_and_read_back(tmp_path, monkeypatch):
    vectors = {word: np.array([np.cos(n / 40), np.sin(n / 40)]) for n, word in enumerate(sorted(WORDS.vocabulary))}

    class Document:
        def __init__(self, word):
            self.vector = vectors[word]

        def similarity(self, other):
            return float(self.vector @ other.vector)

    monkeypatch.setattr(amber, "vectors", lambda: Document)
    monkeypatch.setattr(amber_files, "vectors", lambda: Document)
    monkeypatch.setattr(tokens, "check", lambda what: None)
    pairs = amber_files.write_table(tmp_path / "alike.json", WORDS)
    assert pairs == len(json.loads((tmp_path / "alike.json").read_text())) > 1000
    by_table, by_vectors = amber.similar_of(tmp_path / "alike.json"), amber.similar_of(amber.MODEL)
    words = sorted(WORDS.vocabulary)[::9]
    for a in words:
        assert [by_table(a, b) for b in words] == [by_vectors(a, b) for b in words]


def test_without_spacy_the_published_score_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(tokens, "check", lambda what: None)
    amber.vectors.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(DataError, match="python -m spacy download en_core_web_lg"):
        amber.similar_of(amber.MODEL)("sky", "sun")
