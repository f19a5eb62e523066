"""Tasks of lmms-eval by name: asked and scored as lmms-eval does, and refused before any model is loaded."""

import io
import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_DATASETS_OFFLINE"] = "1"  # before datasets is imported: nothing here may wait for a hub

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from answered import answered
from PIL import Image

import lvlm_guard.evals
from lvlm_guard.errors import UnknownNameError, UnsupportedCallError
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.stock import generation

pytest.importorskip("lmms_eval")

SAID = ["Yes", "no", "Yes.", "No", "yes", "No, there is none.", "There may be.", "maybe", ""]
SCORING = """
def visual(doc):
    return [doc["image"].convert("RGB")]

def results(doc, results):
    said = results[0].split()
    return {"long": float(len(said)), "share": (sum(word == "no" for word in said), len(said)), "last": said[-1:]}

def share(rows):
    return sum(a for a, _ in rows) / sum(b for _, b in rows)

def last(rows):
    return len({word for row in rows for word in row})

def judged(rows, args):
    return 1.0
"""


def picture(number):
    held = io.BytesIO()
    Image.new("RGB", (28, 28), (number * 20 % 255, number * 50 % 255, 99)).save(held, "PNG")
    return {"bytes": held.getvalue(), "path": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Local tasks: stock POPE, MME and CHAIR over files, and one with scoring of its own."""
    import datasets
    import lmms_eval.tasks

    root = tmp_path_factory.mktemp("tasks")
    stock = Path(lmms_eval.tasks.__file__).parent
    text = datasets.Value("string")

    def write(name, rows, base, split, **more):
        plain = {key: text for key in rows[0] if key not in ("image", "gt_object")}
        lists = {"gt_object": datasets.Sequence(text)} if "gt_object" in rows[0] else {}
        features = datasets.Features(plain | lists | {"image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(root / f"{name}.parquet"))
        head = {"include": str(stock / base)} if base else {}
        data = {"dataset_path": "parquet", "dataset_name": None}
        files = {"dataset_kwargs": {"data_files": {split: str(root / f"{name}.parquet")}}}
        config = head | {"task": name} | data | files | more
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))

    pope = [
        {
            "question_id": str(3 * p + k),
            "question": f"Is there a {noun} in the image?",
            "answer": "yes" if (p + k) % 2 else "no",
            "image_source": f"p{p}",
            "category": "adversarial",
            "image": picture(p),
        }
        for k, noun in enumerate(("dog", "cat", "cup"))  # a picture's questions do not stand together
        for p in range(9)
    ]
    write("pope_here", pope, "pope/pope_adv.yaml", "adversarial")
    pairs = [
        {
            "question_id": f"{kind}/{p}.png",
            "question": f"Is this {answer}? Please answer yes or no.",
            "answer": answer,
            "category": kind,
            "image": picture(20 + p + 5 * (kind == "existence")),
        }
        for kind in ("existence", "code_reasoning")
        for p in range(5)
        for answer in ("Yes", "No")
    ]
    write("mme_here", pairs, "mme/mme.yaml", "test")
    write("mme_odd", pairs[:-1], "mme/mme.yaml", "test")
    chair = [{"question_id": "7", "gt_object": ["dog"], "image": picture(3)}]
    write("chair_here", chair, "coco_cap_chair/coco_cap_chair.yaml", "test")
    (root / "own.py").write_text(SCORING)
    own = {
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 9, "until": ["\n"], "do_sample": False},
    }
    lines = "\n".join(
        [
            "doc_to_visual: !function own.visual",
            "process_results: !function own.results",
            "metric_list:",
            "  - {metric: long, aggregation: mean, higher_is_better: false}",
            "  - {metric: share, aggregation: !function own.share, higher_is_better: true}",
            "  - {metric: last, aggregation: !function own.last, higher_is_better: true}",
        ]
    )
    write("own_here", pope, None, "test", **own)
    path = root / "own_here.yaml"
    path.write_text(path.read_text() + lines + "\n")
    drawn = path.read_text().replace("own_here\n", "own_drawn\n").replace("do_sample: false", "do_sample: true")
    (root / "own_drawn.yaml").write_text(drawn)
    judged = path.read_text().replace("own_here\n", "own_judged\n").replace("own.share", "own.judged")
    (root / "own_judged.yaml").write_text(judged)
    (root / "both.yaml").write_text("group: both_here\ntask: [pope_here, own_here]\n")
    return root


def made(folder, name, **more):
    (task,) = tasks_of(Settings(tasks=(name,), include=(str(folder),), **more))
    return task


def answer(key, shift=0):
    return SAID[(7 * int(key) + shift) % len(SAID)]


def measured(task, told=answer):
    greedy, other = [lambda i: told(i.key)], [lambda i: told(i.key, 1), lambda i: told(i.key, 2)]
    found = answered([task], greedy=greedy, other=other)
    assert found["void"] == []
    return found["rows"], [w for w in found["warnings"] if "not defined" in w]


def canned(seen, shift=0):
    """A model of lmms-eval that says what `answer` says, and keeps what it was asked."""
    from lmms_eval.api.model import lmms

    class Canned(lmms):
        is_simple = False

        def generate_until(self, requests):
            said = []
            for request in requests:
                _, messages, options, doc_id, task, split = request.args
                seen[str(doc_id)] = (messages(self.task_dict[task][split][doc_id]), options)
                said.append(answer(doc_id, shift))
            return said

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    return Canned()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pope_here", "mme_here", "own_here"])
def test_prompts_and_scores_are_those_of_lmms_eval(folder, name):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.protocol import ChatMessages
    from lmms_eval.tasks import TaskManager

    task = made(folder, name)
    rows, warnings = measured(task)
    assert warnings == []
    theirs = []
    for shift in range(3):
        seen = {}
        manager = TaskManager(include_path=[str(folder)], include_defaults=False)
        theirs.append(
            simple_evaluate(canned(seen, shift), tasks=[name], task_manager=manager, bootstrap_iters=0)["results"][name]
        )
    metrics = [key.partition(",")[0] for key in theirs[0] if key.endswith(",none") and "stderr" not in key]
    assert metrics
    for metric in metrics:
        whole = [float(found[f"{metric},none"]) for found in theirs]
        assert find(rows, "greedy", name, metric)["value"] == pytest.approx(whole[0], abs=1e-9)
        assert find(rows, "other", name, metric)["value"] == pytest.approx((whole[1] + whole[2]) / 2, abs=1e-9)
    assert sorted(seen) == sorted(item.key for item in task.items)
    for item in task.items:
        messages, options = seen[item.key]
        told = item.conversation()
        theirs_told = ChatMessages(messages=messages).to_hf_messages()
        assert [turn["role"] for turn in told] == [turn["role"] for turn in theirs_told] == ["user"]
        for mine, yours in zip(told[0]["content"], theirs_told[0]["content"], strict=True):
            assert mine["type"] == yours["type"]
            if mine["type"] == "text":
                assert mine["text"] == yours["text"] == item.prompt
            else:
                assert np.array_equal(np.asarray(mine["image"]), np.asarray(yours["image"]))
        assert task.max_new_tokens == options["max_new_tokens"]
        assert list(task.until) == options["until"]


def test_our_own_reading_stands_beside_the_stock_one(folder):
    rows, _ = measured(made(folder, "pope_here"))
    value = {metric: find(rows, "greedy", "pope_here", metric)["value"] for metric in ("pope_accuracy", "accuracy")}
    assert value["pope_accuracy"] < value["accuracy"]  # "Yes." is wrong for lmms-eval
    assert find(rows, "greedy", "pope_here", "unreadable")["value"] > 0
    assert find(rows, "other", "pope_here", "pope_f1_score", "greedy")["p"] <= 1
    words = [len(answer(key).split()) for key in range(27)]
    assert find(rows, "greedy", "pope_here", "words")["value"] == pytest.approx(np.mean(words))


def test_a_limit_takes_the_first_pictures_whole_so_that_mme_keeps_its_pairs(folder):
    task = made(folder, "pope_here", limit=2)
    assert [item.key for item in task.items] == ["0", "9", "18", "1", "10", "19"]
    assert len({item.picture for item in task.items}) == 2
    pairs = made(folder, "mme_here", limit=3)
    assert len(pairs.items) == 6
    assert measured(pairs)[0]
    with pytest.raises(DataError, match=r"1 pictures do not have two; the first is code_reasoning/4\.png"):
        made(folder, "mme_odd")


def test_a_score_that_lmms_eval_divides_by_zero_for_is_left_out_with_a_warning(folder):
    rows, warnings = measured(made(folder, "own_here"), lambda key, shift=0: "" if shift else "no")
    assert warnings == ["own_here: share is not defined for some decoder's answers (0 / 0), so it is left out."]
    assert find(rows, "greedy", "own_here", "share") is None
    assert find(rows, "greedy", "own_here", "long")["value"] == 1


def test_an_answer_limit_of_ones_own_is_said(folder):
    assert made(folder, "own_here").max_new_tokens == 9
    changed = made(folder, "own_here", max_new_tokens=5)
    assert changed.max_new_tokens == 5
    assert "stock lmms-eval allows 9" in changed.about["warnings"][0]


def test_generation_arguments_are_honoured_or_refused(folder):
    stock = {"max_new_tokens": 128, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False, "until": ["\n"]}
    asked = generation("t", stock)
    assert (asked.max_new_tokens, asked.until) == (128, ("\n",))
    for odd in ({"num_beams": 5}, {"temperature": 0.7}, {"do_sample": True}):
        with pytest.raises(DataError, match="its numbers would not be stock's"):
            generation("t", odd)
    with pytest.raises(UnsupportedCallError, match="penalty"):
        generation("t", {"penalty": 2})
    with pytest.raises(DataError, match="own_drawn asks for sampling"):
        made(folder, "own_drawn")


def test_an_unknown_task_gets_the_nearest_of_both_lists(folder):
    for wrong, near in (("pope_advv", "pope_adv"), ("pope_cocoo", "pope_coco"), ("world_pop", "world_pope")):
        with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
            tasks_of(Settings(tasks=(wrong,)))
    with pytest.raises(DataError, match="nowhere is no folder"):
        tasks_of(Settings(tasks=("pope_here",), include=("nowhere",)))


def test_tasks_whose_scores_would_mislead_or_fail_are_refused_at_once(folder, tmp_path):
    with pytest.raises(DataError, match="hallusion_bench_image is not offered: an outside model judges"):
        tasks_of(Settings(tasks=("hallusion_bench_image",)))
    with pytest.raises(DataError, match=r"chair_here .* needs data of NLTK .* nltk\.downloader punkt_tab"):
        made(folder, "chair_here")
    with pytest.raises(DataError, match="for the test split only"):
        made(folder, "pope_here", split="val")
    (tmp_path / "mme.yaml").write_text((folder / "mme_here.yaml").read_text().replace("mme_here\n", "mme\n"))
    with pytest.raises(DataError, match="give yours another name"):
        tasks_of(Settings(tasks=("mme",), include=(str(tmp_path),)))


def test_amber_needs_spacy():
    if find_spec("spacy") is not None:
        pytest.skip("spaCy is installed")
    with pytest.raises(DataError, match=r"spaCy is not installed: pip install spacy && python -m spacy download"):
        tasks_of(Settings(tasks=("amber_g",)))


@pytest.mark.slow
def test_a_data_set_that_cant_be_had_shows_the_cause_not_the_retries():
    with pytest.raises(DataError, match=r"pope can't be loaded: ConnectionError: Couldn't reach.*localize"):
        tasks_of(Settings(tasks=("lmms:pope",)))


def test_a_run_asks_a_stock_task_and_keeps_its_scores_with_the_samples(tmp_path):
    include = str(Path(lvlm_guard.evals.__file__).parent / "lmms" / "tasks")
    asked = Settings(
        tasks=("lvlm_guard_world_pope",), include=(include,), methods=("greedy",), controls=False, limit=1, batch=18
    )
    found = score(ask(asked, tmp_path / "out", echo=lambda line: None, bar=False, workers=1))
    assert found["void"] == []
    table = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    truths = {item.key: item.truth for item in tasks_of(asked)[0].items}
    right = [row["text"] == truths[row["item"]] for row in table if row["decoder"] == "greedy"]
    assert find(found["rows"], "greedy", "lvlm_guard_world_pope", "accuracy")["value"] == np.mean(right)


def test_which_way_is_better_is_what_the_task_says(folder):
    rows, _ = measured(made(folder, "own_here"))
    directions = {row["metric"]: row["direction"] for row in rows}
    assert (directions["long"], directions["share"]) == ("lower", "higher")


def test_a_group_and_its_member_are_no_two_tasks(folder):
    include = (str(folder),)
    for twice in (("pope_here", "pope_here"), ("pope_here", "lmms:pope_here")):
        with pytest.raises(DataError, match="stands for pope_here twice"):
            tasks_of(Settings(tasks=twice, include=include))
    with pytest.raises(DataError, match="stands for pope_here twice"):
        tasks_of(Settings(tasks=("both_here", "pope_here"), include=include))


def test_a_score_that_needs_the_command_line_is_refused_before_anything_is_asked(folder):
    with pytest.raises(DataError, match="command line"):
        made(folder, "own_judged")
