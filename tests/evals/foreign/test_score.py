"""Files of answers score as the golden data say, through the command, with no model's libraries in sight."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lvlm_guard.cli.app import app

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "benchmarks"
RUN = CliRunner()


def scored(*arguments, code=0):
    done = RUN.invoke(app, ["eval", "score", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def value(found, method, task, metric, baseline=None):
    (row,) = (
        row
        for row in found["rows"]
        if (row["method"], row["baseline"], row["task"], row["metric"]) == (method, baseline, task, metric)
    )
    return row["value"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def golden_rows():
    rows = json.loads((GOLDEN / "yes_bias.json").read_text())["rows"]
    told = ("question_id", "label", "score", "mass")
    return [{name: row[name] for name in told} | {"image": row["picture"], "text": row["greedy"]} for row in rows]


def test_yes_no_answers_score_as_the_golden_data_say(tmp_path):
    gold = json.loads((GOLDEN / "yes_bias.json").read_text())
    found = scored(written(tmp_path / "greedy.jsonl", golden_rows()), "--task", "yes-no")
    assert found["command"] == "eval score"
    at = {metric: value(found, "greedy", "yes_no", metric) for metric in ("auroc", "accuracy_matched", "tilt")}
    assert at["auroc"] == pytest.approx(gold["auroc"], abs=1e-9)
    assert at["accuracy_matched"] == pytest.approx(gold["matched_labels"]["accuracy"])
    assert at["tilt"] == pytest.approx(gold["tilt_labels"], abs=1e-6)
    tp, fp, tn, fn = (gold["greedy"][name] for name in ("tp", "fp", "tn", "fn"))
    assert value(found, "greedy", "yes_no", "accuracy") == pytest.approx((tp + tn) / 40)
    assert value(found, "greedy", "yes_no", "yes_ratio") == pytest.approx((tp + fp) / 40)
    assert value(found, "greedy", "yes_no", "f1") == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert value(found, "greedy", "yes_no", "unreadable") == pytest.approx(1 / 40)
    assert value(found, "greedy", "yes_no", "balanced_accuracy") == pytest.approx((tp / 16 + tn / 24) / 2)


def test_a_tilt_moves_answers_and_no_ranking_and_the_verdict_says_so(tmp_path):
    rows = golden_rows() * 5
    rows = [row | {"question_id": place, "image": f"{row['image']}/{place // 40}"} for place, row in enumerate(rows)]
    plain = [row | {"decoder": "greedy", "text": "yes" if row["score"] > 0 else "no"} for row in rows]
    tilted = [
        row | {"decoder": "tilted", "score": row["score"] - 1.06, "text": "yes" if row["score"] > 1.06 else "no"}
        for row in rows
    ]
    found = scored(written(tmp_path / "both.jsonl", plain + tilted), "--task", "yes-no")
    assert value(found, "tilted", "yes_no", "accuracy", "greedy") == pytest.approx(0.2)
    assert value(found, "tilted", "yes_no", "auroc", "greedy") == pytest.approx(0)
    assert value(found, "tilted", "yes_no", "accuracy_matched", "greedy") == pytest.approx(0)
    (verdict,) = found["verdicts"]
    assert (verdict["decoder"], verdict["verdict"]) == ("tilted", "moves the threshold")
    found = scored(tmp_path / "both.jsonl", "--task", "yes-no", "--baseline", "tilted")
    assert value(found, "greedy", "yes_no", "accuracy", "tilted") == pytest.approx(-0.2)


def test_a_missing_class_is_scored_without_auroc(tmp_path):
    rows = [row for row in golden_rows() if row["label"] == "yes"]
    found = scored(written(tmp_path / "a.jsonl", rows), "--task", "yes-no")
    assert value(found, "a", "yes_no", "auroc") is None
    assert value(found, "a", "yes_no", "accuracy") == pytest.approx(14 / 16)
    assert any("all labels are yes" in warning for warning in found["warnings"])


def test_scores_after_a_cut_rank_their_infinities_at_the_ends(tmp_path):
    case = json.loads((GOLDEN / "yes_bias.json").read_text())["cut_case"]
    rows = [
        {"question_id": i, "image": str(i), "label": label, "text": "no", "score_cut": score}
        for i, (score, label) in enumerate(zip(case["scores"], case["labels"], strict=True))
    ]
    found = scored(written(tmp_path / "a.jsonl", rows), "--task", "yes-no")
    assert value(found, "a", "yes_no", "auroc") == pytest.approx(case["auroc"])
    assert any("after a plausibility cut" in warning for warning in found["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llava-1.5", "minigpt4"])
def test_released_captions_score_as_recorded_whole_and_at_each_length(model):
    gold = json.loads((GOLDEN / "chair_lengths.json").read_text())["files"]
    files = [f"{name}={GOLDEN}/captions/opera_{model}_{name}.jsonl.gz" for name in ("greedy", "ours")]
    more = ("--dialect", "pattern", "--dialect", "default", "--words", "16,64")
    found = scored(*files, "--task", "chair", "--annotations", DATA / "chair" / "gt_objects.json.gz", *more)
    same = {"chair_s": "chair_s", "chair_i": "chair_i", "recall": "object_recall", "f1": "f1", "length": "length"}
    for name in ("greedy", "ours"):
        for theirs, metric in same.items():
            told = gold[f"{model}/{name}"]
            suffix = "" if metric == "length" else "_official"
            assert value(found, name, "chair", metric + suffix) == pytest.approx(told["pattern"][theirs])
            assert value(found, name, "chair", metric) == pytest.approx(told["ours"][theirs])
            for words in ("16", "64") if "prefix" in told else ():
                short = value(found, name, f"chair_{words}_words", metric + suffix)
                assert short == pytest.approx(told["prefix"][words][theirs])
    mine, control = "ours cut as short as greedy", "greedy cut as short as ours"
    assert value(found, mine, "chair", "length", control) == 0
    assert value(found, mine, "chair", "chair_s", control) == pytest.approx(
        value(found, mine, "chair", "chair_s") - value(found, control, "chair", "chair_s")
    )


def test_a_decoder_that_says_less_of_the_same_gains_nothing_at_equal_length(tmp_path):
    texts = [
        "A dog sits here. A cat and a bench are far behind it.",
        "A bus stands here.",
        "A man and a cup and a fork.",
    ]
    for name, most in (("greedy", 99), ("brief", 4)):
        rows = [{"image_id": i, "caption": " ".join(text.split()[:most])} for i, text in enumerate(texts)]
        written(tmp_path / f"{name}.jsonl", rows)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"categories": ["dog", "bus", "person"], "images": {"0": [0], "1": [1], "2": [2]}}))
    files = [tmp_path / "greedy.jsonl", tmp_path / "brief.jsonl"]
    found = scored(*files, "--task", "chair", "--annotations", truth)
    assert value(found, "brief", "chair", "chair_s", "greedy") == pytest.approx(-2 / 3)
    pair = ("brief cut as short as greedy", "chair", "chair_s", "greedy cut as short as brief")
    assert value(found, *pair) == 0


def test_empty_captions_make_files_void_and_several_captions_are_judged_each(tmp_path):
    truth = tmp_path / "truth.json"
    images = {str(i): [i % 2] for i in range(10)}
    truth.write_text(json.dumps({"categories": ["dog", "bus"], "images": images}))
    rows = [{"image_id": i, "caption": "" if i < 4 else f"A {('dog', 'bus')[i % 2]} and {i} cats."} for i in range(10)]
    options = ("--task", "chair", "--annotations", truth)
    found = scored(written(tmp_path / "m.jsonl", rows), *options, code=3)
    assert found["void"] == ["m on chair: 4 of 10 answers are empty (first keys: 0, 1, 2)."]
    good = [row | {"caption": f"A dog and {row['image_id']} cats.", "seed": s} for row in rows for s in (1, 2)]
    assert scored(written(tmp_path / "good.jsonl", good), *options, "--words", "2,3")["void"] == []
    (cut,) = [place for place, row in enumerate(good) if (row["image_id"], row["seed"]) == (7, 2)]
    good[cut] |= {"caption": " "}
    found = scored(written(tmp_path / "good.jsonl", good), *options, code=3)
    assert found["void"] == ["good on chair: 1 of 20 answers are empty (first keys: 7 (seed 2))."]


def test_a_log_of_lmms_eval_brings_its_own_objects(tmp_path):
    told = {"answer": ["dog"], "pred": ["dog", "cat"], "image_id": 42}
    log = {"doc_id": 0, "target": "", "filtered_resps": ["A dog and a cat."], "input": "", "coco_cap_chair_i": told}
    found = scored(written(tmp_path / "log.jsonl", [log]), "--task", "chair")
    assert value(found, "log", "chair", "chair_i") == pytest.approx(0.5)
    caption = written(tmp_path / "c.jsonl", [{"image_id": 42, "caption": "A dog."}])
    done = RUN.invoke(app, ["eval", "score", str(caption), "--task", "chair"])
    assert done.exit_code == 1
    assert "--annotations" in done.output


def test_answers_to_some_of_popes_questions_are_scored_and_the_rest_is_told(tmp_path):
    packed = DATA / "pope" / "coco_pope_popular.json.gz"
    asked = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode().split("\n") if line]
    rows = [{"question_id": q["question_id"], "prompt": q["text"], "text": "No.", "image": q["image"]} for q in asked]
    found = scored(written(tmp_path / "m.jsonl", rows[:60]), "--task", "yes-no", "--questions", packed)
    assert value(found, "m", "pope_popular", "accuracy") == pytest.approx(0.5)
    assert any("2940 of 3000 questions have no answer" in warning for warning in found["warnings"])
    assert any("published file for coco popular" in warning for warning in found["warnings"])


def test_stored_verdicts_score_as_mmhals_script_prints_them(tmp_path):
    gold = json.loads((GOLDEN / "mmhal_verdicts.json").read_text())
    reply = {"judge": {"model": "j-1", "date": "2026-11-29"}, "prompt_sha256": "p" * 64, "answers_sha256": "a" * 64}
    path = tmp_path / "reply.json"
    path.write_text(json.dumps(reply | {"verdicts": gold["verdicts"]}))
    found = scored(path, "--task", "mmhal")
    assert value(found, "reply", "mmhal", "score_official") == pytest.approx(gold["average"])
    assert value(found, "reply", "mmhal", "hallucination_rate_official") == pytest.approx(gold["hallucination_rate"])
    assert value(found, "reply", "mmhal_attribute", "score_official") == pytest.approx(gold["by_type"][0])
    assert any("judged by j-1 on 2026-11-29; prompt_sha256 pppp" in warning for warning in found["warnings"])
    other = tmp_path / "other.json"
    other.write_text(json.dumps(reply | {"judge": {"model": "j-2", "date": ""}, "verdicts": gold["verdicts"]}))
    done = RUN.invoke(app, ["eval", "score", str(path), str(other), "--task", "mmhal"], env={"COLUMNS": "500"})
    assert done.exit_code == 1
    assert "judged differently" in done.output


def test_captions_are_asked_popes_questions(tmp_path):
    gold = json.loads((GOLDEN / "opope.json").read_text())
    questions = [
        {"question_id": i, "image": f"{row['image_id']}.jpg", "label": row["label"]}
        | {"text": f"Is there a {row['object']} in the image?"}
        for i, row in enumerate(gold["rows"])
    ]
    said = [{"image_id": int(key), "caption": text} for key, text in gold["captions"].items()]
    said.append({"image_id": 99, "caption": "Nothing is asked of this one."})
    asked = written(tmp_path / "coco_pope_random.json", questions)
    found = scored(written(tmp_path / "m.jsonl", said), "--task", "opope", "--questions", asked)
    assert value(found, "m", "opope", "precision_random_official") == pytest.approx(5 / 6)
    assert value(found, "m", "opope", "recall_random_official") == pytest.approx(0.5)
    assert any("1 of 5 captioned pictures are left out" in warning for warning in found["warnings"])
    done = RUN.invoke(app, ["eval", "score", str(tmp_path / "m.jsonl"), "--task", "opope"])
    assert "--questions" in done.output


def test_ambers_answers_score_as_its_script_prints_them(tmp_path):
    gold = json.loads((GOLDEN / "amber" / "golden_discriminative.json").read_text())
    table = json.loads((GOLDEN / "amber" / "golden_generative.json").read_text())
    said = [{"id": one["id"], "response": one["response"]} for one in gold["sets"]["mixed"]["answers"]]
    captioned = {one["id"]: one["caption"] for one in table["captions"]}  # a picture once
    said += [{"id": number, "response": caption} for number, caption in captioned.items()]
    path = written(tmp_path / "m.jsonl", said)
    found = scored(path, "--task", "amber", "--annotations", GOLDEN / "amber", "--allow-empty", 1)
    for metric, told in gold["sets"]["mixed"]["printed"]["Descriminative Task"].items():
        ours = value(found, "m", "amber", f"{metric.lower()}_official")
        assert round(100 * ours, 1) == pytest.approx(told)
    assert {"amber_captions", "amber_existence"} <= {row["task"] for row in found["rows"]}


def test_tables_of_vlmevalkit_bring_ambers_labels(tmp_path):
    heads = "index\timage_path\tquestion\tanswer\tcategory\tprediction"
    rows = [f"{i}\tAMBER_{i // 2}.jpg\tIs it?\t{('yes', 'no')[i % 2]}\trelation\tNo" for i in range(4)]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join([heads, *rows]) + "\n")
    found = scored(path, "--task", "amber")
    assert value(found, "t", "amber_relation", "accuracy") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pope"], "--task 'pope' is none of files of answers.*There are yes-no, chair"),
        (["--task", "yes_no"], "Did you mean 'yes-no'"),
        ([], "--task '' is none"),
        (["--task", "chair", "--dialect", "patern"], "no dialect 'patern'; did you mean 'pattern'"),
        (["--task", "yes-no", "--baseline", "beam"], "No decoder is called 'beam': there are a"),
        (["--task", "yes-no", "--words", "16"], "--words is not for --task yes-no, and would do nothing"),
        (["--task", "chair", "--words", "0"], "--words '0': give whole numbers of at least 1"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(tmp_path, arguments, message):
    path = written(tmp_path / "a.jsonl", golden_rows())
    done = RUN.invoke(app, ["eval", "score", str(path), *arguments], env={"COLUMNS": "500"})
    assert done.exit_code in (1, 2)
    assert __import__("re").search(message, " ".join(done.output.split())), done.output


def test_two_files_of_one_name_are_told_apart_by_names(tmp_path):
    (tmp_path / "b").mkdir()
    files = [written(folder / "a.jsonl", golden_rows()) for folder in (tmp_path, tmp_path / "b")]
    done = RUN.invoke(app, ["eval", "score", *map(str, files), "--task", "yes-no"], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert "NAME=FILE" in done.output
    found = scored(files[0], f"b={files[1]}", "--task", "yes-no")
    assert [d["name"] for d in found["decoders"]] == ["a", "b"]


def test_a_folder_is_a_run_and_no_file_of_answers(tmp_path):
    done = RUN.invoke(app, ["eval", "score", str(tmp_path)], env={"COLUMNS": "500"})
    assert done.exit_code == 1
    assert "it is no run" in done.output
    for more in (["--task", "chair"], ["--words", "16"]):
        assert RUN.invoke(app, ["eval", "score", str(tmp_path), *more]).exit_code == 2
    path = written(tmp_path / "a.jsonl", golden_rows())
    assert RUN.invoke(app, ["eval", "score", str(path), str(tmp_path), "--task", "yes-no"]).exit_code == 2


def test_rules_fail_files_as_they_fail_a_run(tmp_path):
    rows = golden_rows()
    worse = [row | {"decoder": "worse", "text": "maybe"} for row in rows]
    path = written(tmp_path / "a.jsonl", [row | {"decoder": "greedy"} for row in rows] + worse)
    for rule, code in (("accuracy_diff<-0.1", 1), ("accuracy_diff<-0.99", 0)):
        done = RUN.invoke(app, ["eval", "score", str(path), "--task", "yes-no", "--fail-if", rule])
        assert done.exit_code == code, done.output


def test_the_table_is_drawn_for_any_terminal(tmp_path):
    path = written(tmp_path / "greedy.jsonl", golden_rows())
    for columns in ("70", "160"):
        done = RUN.invoke(app, ["eval", "score", str(path), "--task", "yes-no"], env={"COLUMNS": columns})
        assert done.exit_code == 0, done.output
        assert ".831" in done.output


@pytest.mark.slow
def test_scoring_imports_no_model_library(tmp_path):
    path = written(tmp_path / "a.jsonl", golden_rows())
    code = f"""
import sys
from lvlm_guard.cli import main
try:
    main(["eval", "score", {str(path)!r}, "--task", "yes-no"])
except SystemExit as done:
    assert not done.code, done.code
loaded = {{"torch", "transformers", "lmms_eval", "torchvision", "nltk"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_rows_are_scored_in_bounded_memory(tmp_path):
    """Peak memory of 10^4 and 10^6 rows."""
    code = """
import json, random, resource, sys
path, n = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)
with open(path, "w") as file:
    for decoder, skill in (("greedy", 1.5), ("other", 1.8)):
        for i in range(n // 2):
            score = rng.gauss(skill if i % 2 else -skill, 2)
            row = {"question_id": i, "image": f"COCO_{i // 6:012d}.jpg", "label": "yes" if i % 2 else "no"}
            row |= {"text": "Yes" if score > 0 else "No", "score": score, "decoder": decoder}
            file.write(json.dumps(row) + "\\n")
from pathlib import Path
from lvlm_guard.evals.foreign.score import score_files
found = score_files({"a": Path(path)}, "yes-no")
assert found["rows"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    told = {}
    for n in (10**4, 10**6):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.jsonl"), str(n)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told[n] = float(done.stdout)
    print(told)
    assert told[10**6] < 2048  # MiB
