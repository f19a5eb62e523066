"""RePOPE, OPOPE, DASH-B and MMHal-Bench against what their scripts gave for the same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captions import read_captions

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair, mmhal, opope, pope
from lvlm_guard.evals.metrics.metric import Batch, Items, metric_of
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.tasks.pope.questions import Question, read_questions
from lvlm_guard.evals.tasks.repope import labels as relabelled
from lvlm_guard.evals.tasks.repope import repope_labels
from tests.support import pope_scores

DATA = Path(__file__).parents[1] / "data"
ROOM = Path(__file__).parents[2] / "evals"
REPOPE = json.loads((DATA / "benchmarks" / "repope_scores.json").read_text())
OPOPE = json.loads((DATA / "benchmarks" / "opope.json").read_text())
DASH_B = json.loads((DATA / "benchmarks" / "dash_b_scores.json").read_text())
MMHAL = json.loads((DATA / "benchmarks" / "mmhal_verdicts.json").read_text())
FILES = {"random": "random", "popular": "popular", "adversarial": "adversarial_fixed"}


def test_scorers_and_their_tasks_load_no_model_library_and_no_language_tools():
    names = [
        f"metrics.{path.stem}" for path in (ROOM / "metrics").glob("*.py") if path.stem not in ("__init__", "stock")
    ]
    names += [
        "tasks.repope",
        "tasks.pope.task",
        "tasks.amber",
        "tasks.dash_b",
        "tasks.mmhal",
        "stats.score",
    ]
    code = "import sys; " + "; ".join(f"import lvlm_guard.evals.{name}" for name in names)
    code += "; print([m for m in ('torch', 'transformers', 'lmms_eval', 'nltk', 'spacy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def scores_of(kind, truths, answers, task=None):
    keys = [str(n) for n in range(len(truths))]
    metric = metric_of(kind)(
        {"name": kind, "kind": kind, **(task or {})},
        Items(keys=keys, pictures=keys, truths=truths, rows=[(kind,)] * len(keys)),
    )
    batch = Batch(np.arange(len(keys)), answers, np.ones(len(keys), bool), [None] * len(keys))
    sums = metric.count(batch).sum(axis=0)
    return {name: float(score.of(sums)) for name, score in metric.scores().items() if not score.only_differences}


def questions(split):
    return read_questions(DATA / "pope" / f"coco_pope_{FILES[split]}.json.gz")


def template(question):
    return REPOPE["templates"][(7 * question.question_id + len(question.text)) % len(REPOPE["templates"])]


KEYS = {"TP": "tp", "FP": "fp", "TN": "tn", "FN": "fn", "Precision": "precision", "Recall": "recall", "F1": "f1"}
KEYS |= {"ACC": "accuracy", "Yes Ratio": "yes_ratio"}


@pytest.mark.parametrize(("text", "said"), REPOPE["reading_cases"])
def test_answers_read_as_repopes_script_reads_them(text, said):
    assert pope.read(text, "repope") == said


@pytest.mark.parametrize("split", FILES)
def test_template_answers_score_on_pope_as_repopes_script_scored_them(split):
    asked = questions(split)
    rows = [{"question_id": q.question_id, "label": q.label, "answer": template(q)} for q in asked]
    gold = REPOPE["splits"][split]["templates_pope"]
    found = pope_scores.score(rows, "repope")
    assert {key: found[KEYS[key]] for key in gold} == {
        key: pytest.approx(value, abs=1e-12) for key, value in gold.items()
    }
    rows_of_results = scores_of("repope", [q.label for q in asked], [template(q) for q in asked])
    for key in ("Precision", "Recall", "F1", "ACC", "Yes Ratio"):
        assert rows_of_results[f"{KEYS[key]}_official"] == pytest.approx(gold[key], abs=1e-12)
    # unread answers are wrong in ours, not left out
    assert rows_of_results["accuracy"] == pytest.approx(pope_scores.score(rows)["accuracy"])


ASKED = [
    Question(n, f"{n}.jpg", f"Is there an {what} in the imange?", "yes", "random")
    for n, what in enumerate(["apple", "orange", "oven"], 1)
]
LABELS = {
    "random": {
        n: Question(n, f"{n}.jpg", f"Is there an {what} in the image?", label)
        for n, what, label in [(1, "apple", "no"), (3, "oven", "yes")]
    }
}


def test_labels_join_by_split_and_id_whatever_the_misspelling_and_dropped_questions_are_left_out():
    assert relabelled(ASKED, LABELS) == ["no", None, "yes"]
    assert relabelled(ASKED[::-1], LABELS) == ["yes", None, "no"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([ASKED[0]._replace(image="9.jpg"), *ASKED[1:]], "of 9.jpg here, and .* of 1.jpg in RePOPE"),
        (
            [ASKED[0]._replace(text="Is there a dog in the image?"), *ASKED[1:]],
            "'Is there a dog in the image.' of 1.jpg",
        ),
        (ASKED[:2], "1 questions of RePOPE were not answered, the first of them 3 of random"),
        ([*ASKED, ASKED[0]], "Question 1 of POPE random was asked twice"),
        ([ASKED[0]._replace(split="rare"), *ASKED[1:]], "no split 'rare'"),
    ],
)
def test_answers_that_do_not_fit_repope_are_refused(asked, message):
    with pytest.raises(DataError, match=message):
        relabelled(asked, LABELS)


def real_repope():
    """The published labels, where LVLM_GUARD_REPOPE names their folder: they have no licence, so none are here."""
    folder = os.environ.get("LVLM_GUARD_REPOPE")
    if not folder:
        pytest.skip("RePOPE states no licence and is not shipped: name its folder in LVLM_GUARD_REPOPE")
    return repope_labels(folder)


@pytest.mark.parametrize("split", FILES)
def test_template_answers_score_on_repope_as_its_script_scored_them(split):
    labels, gold = real_repope()[split], REPOPE["splits"][split]
    asked = questions(split)
    told = relabelled([q._replace(split=split) for q in asked], {split: labels})
    kept = [(q, label) for q, label in zip(asked, told, strict=True) if label]
    assert (len(kept), told.count(None)) == (gold["rows"], gold["dropped_yes"] + gold["dropped_no"])
    for name, answer in (("templates_repope", template), ("pope_labels_as_answers_on_repope", lambda q: q.label)):
        found = pope_scores.score(
            ({"question_id": q.question_id, "label": label, "answer": answer(q)} for q, label in kept), "repope"
        )
        assert {k: found[KEYS[k]] for k in gold[name]} == {
            k: pytest.approx(v, abs=1e-12) for k, v in gold[name].items()
        }


def test_dash_b_scores_as_its_script_scored_and_an_unread_answer_is_wrong():
    found = scores_of("dash_b", DASH_B["gold"], DASH_B["responses"])
    official = DASH_B["official"]
    assert found["accuracy_official"] == official["ACC"]
    assert found["tnr_official"] == official["TNR"]
    assert found["tpr_official"] == official["TPR"]
    assert found["harmonic_mean_official"] == official["Harmonic Mean"]
    assert found["unreadable"] == 2 / 8  # "maybe", and "I cannot see one", which their letters read as no
    assert found["harmonic_mean"] == 0.5
    assert scores_of("dash_b", ["yes", "no"], ["No", "Yes"])["harmonic_mean"] == 0.0


def test_opope_reads_made_captions_as_halcs_script_did():
    for row in OPOPE["rows"]:
        said = opope.says_official(OPOPE["captions"][str(row["image_id"])], row["object"])
        assert said == (row["official"] == "yes"), row
    truths: dict[int, list[list[str]]] = {}
    for row in OPOPE["rows"]:
        truths.setdefault(row["image_id"], []).append([row["object"], row["label"]])
    found = scores_of(
        "opope", [{"random": pairs} for pairs in truths.values()], [OPOPE["captions"][str(i)] for i in truths]
    )
    gold = OPOPE["official"]
    for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert found[f"{metric}_random_official"] == pytest.approx(gold[metric], abs=1e-12)
    assert found["f0.2_random_official"] == pytest.approx(0.8125, abs=1e-4)
    assert found["recall_random"] > found["recall_random_official"]  # people and Dog are found


def names(caption, name):
    return name in coco_words().find(caption).nodes


@pytest.mark.parametrize("name", OPOPE["real"]["counts"])
def test_opope_of_real_captions_gives_the_recorded_counts_by_both_rules(name):
    model, kind = name.split("/")
    gold = OPOPE["real"]["counts"][name]
    rows = read_captions(DATA / "chair" / f"captions_instruction1_{model}.jsonl.gz")
    captions = {row["image_id"]: row["caption"] for row in rows}
    asked = [
        q for q in read_questions(DATA / "pope" / f"coco_pope_{kind}.json.gz") if chair.image_id(q.image) in captions
    ]
    assert len({q.image for q in asked}) == gold["pictures"]
    for rule, says in (("official", opope.says_official), ("node", names)):
        pairs = [(says(captions[chair.image_id(q.image)], opope.asked_object(q.text)), q.label == "yes") for q in asked]
        assert dict(zip(("tp", "fp", "tn", "fn"), opope.outcomes(pairs), strict=True)) == gold[rule]


def test_questions_that_a_caption_cannot_be_asked_are_refused():
    with pytest.raises(DataError, match="is no question of POPE"):
        opope.asked_object("Describe the image.")
    with pytest.raises(DataError, match="an object that captions are not searched for"):
        opope.asked_object("Is there a unicorn in the image?")
    assert opope.asked_object("Is there an apple in the imange?") == "apple"
    with pytest.raises(DataError, match="a caption can't be asked"):
        scores_of("opope", [{"random": [["dog", "maybe"]]}], ["a dog"])
    assert set(coco_words().nodes.values()) >= {"dog", "person"}


def reply_of(tmp_path, answers, **changes):
    table = {
        "judge": {"model": "judge-1-0613", "date": "2026-11-29"},
        "prompt_sha256": "ab" * 32,
        "answers_sha256": mmhal.answers_digest(answers),
        "verdicts": MMHAL["verdicts"],
    }
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps(table | changes))
    return path


ANSWERS = [f"answer {n}" for n in range(96)]


def test_verdicts_score_as_mmhals_script_printed_them_and_unread_ones_stand_apart(tmp_path):
    assert [mmhal.rating_official(verdict) for verdict in MMHAL["verdicts"]] == MMHAL["scores"]
    reply = mmhal.read_reply(reply_of(tmp_path, ANSWERS))
    table = np.array([mmhal.counts(verdict) for verdict in reply.verdicts])
    found = {name: float(score.of(table.sum(0))) for name, score in mmhal.SCORES.items()}
    by_type = [float(mmhal.SCORES["score_official"].of(table[n::8].sum(0))) for n in range(8)]
    assert found["score_official"] == pytest.approx(MMHAL["average"], abs=1e-12)
    assert found["hallucination_rate_official"] == pytest.approx(MMHAL["hallucination_rate"], abs=1e-12)
    assert by_type == pytest.approx(MMHAL["by_type"], abs=1e-12)
    assert MMHAL["printed"] == [
        f"Average score: {found['score_official']:.2f}",
        f"Hallucination rate: {found['hallucination_rate_official']:.2f}",
        "Average score for each question type: " + ",".join(str(round(value, 2)) for value in by_type),
    ]
    assert (reply.judge["model"], reply.prompt_sha256) == ("judge-1-0613", "ab" * 32)
    # "Rating: [4]" and "**Rating:** 5" say a grade; "3 ... 5", "60", none and "Score: 6" do not
    assert [mmhal.rating(v) for v in MMHAL["verdicts"][10:18]] == [4, 5, None, None, None, 4, None, 6]
    assert found["unread"] == 4 / 96


def test_a_run_finds_the_verdicts_on_its_answers_by_their_digest(tmp_path):
    about = {"about": {"verdicts": [str(reply_of(tmp_path, ANSWERS))]}}
    found = scores_of("mmhal", [None] * 96, ANSWERS, about)
    assert found["score_official"] == pytest.approx(MMHAL["average"])
    assert np.isnan(scores_of("mmhal", [None] * 96, ANSWERS[::-1], about)["score"])  # nobody judged these


def test_verdicts_without_a_judge_or_of_other_answers_are_refused(tmp_path):
    for field in ("judge", "prompt_sha256", "answers_sha256"):
        path = reply_of(tmp_path, ANSWERS)
        table = json.loads(path.read_text())
        del table[field]
        path.write_text(json.dumps(table))
        with pytest.raises(DataError, match=f"has no '{field}'"):
            mmhal.read_reply(path)
    with pytest.raises(DataError, match=r"'judge' of .* has no 'date'"):
        mmhal.read_reply(reply_of(tmp_path, ANSWERS, judge={"model": "x"}))
    with pytest.raises(DataError, match="has 95 verdicts"):
        mmhal.read_reply(reply_of(tmp_path, ANSWERS, verdicts=MMHAL["verdicts"][:95]))
    with pytest.raises(DataError, match=r"Verdict 1 of .* is neither a text nor a chat completion"):
        mmhal.read_reply(reply_of(tmp_path, ANSWERS, verdicts=[{"choices": []}] * 96))
    completions = [{"choices": [{"message": {"content": verdict}}]} for verdict in MMHAL["verdicts"]]
    assert mmhal.read_reply(reply_of(tmp_path, ANSWERS, verdicts=completions)).verdicts == tuple(MMHAL["verdicts"])
