"""The model within lmms-eval, from Python: the answers of our own runs, in any batch; errors that end the run."""

import json

import pytest

from lvlm_guard.errors import GuardError, KnobError, TextError, UnknownNameError, UnsupportedCallError
from lvlm_guard.evals.lmms.model import LvlmGuard
from tests.support import pope_scores

POPE, CHAIR = "lvlm_guard_world_pope", "lvlm_guard_world_chair"
AGLA = "pretrained=embedded,method=agla,alpha=1"
SAMPLED = "do_sample=True,temperature=1.0,top_p=1.0,top_k=0"


def texts(samples, task):
    return {doc: sample["resps"][0][0] for doc, sample in samples[task].items()}


def same_as_own(samples, own):
    """Compare every answer that our own run has too (it asks a question that two kinds share only once)."""
    for theirs, ours in ((POPE, own["world_pope"]), (CHAIR, own["world_chair"])):
        found = texts(samples, theirs)
        assert {key: found[int(key)] for key in ours} == ours
    assert len(own["world_pope"]) > 90
    assert len(own["world_chair"]) == 12


@pytest.fixture(scope="module")
def one_by_one(evaluate):
    return evaluate(AGLA, [POPE, CHAIR])


def test_the_answers_are_those_of_our_own_run(one_by_one, own):
    same_as_own(one_by_one[1], own("agla"))


@pytest.mark.slow
def test_greedy_is_the_plain_model(evaluate, own, one_by_one):
    _, samples = evaluate("pretrained=embedded,method=greedy", [POPE, CHAIR])
    same_as_own(samples, own("greedy"))
    assert texts(samples, CHAIR) != texts(one_by_one[1], CHAIR)


@pytest.mark.slow
def test_vote_votes_on_the_worlds_own_objects_as_in_our_run(evaluate, own):
    same_as_own(evaluate("pretrained=embedded,method=vote", [POPE, CHAIR], batch_size=16)[1], own("vote"))


@pytest.mark.slow
def test_sampling_draws_what_our_run_draws_with_the_same_seed(evaluate, own):
    drawn = [evaluate(f"{AGLA},seed={seed}", [POPE, CHAIR], gen_kwargs=SAMPLED, batch_size=8)[1] for seed in (0, 1)]
    same_as_own(drawn[0], own("agla-sample", 0))
    same_as_own(drawn[1], own("agla-sample", 1))
    assert texts(drawn[0], CHAIR) != texts(drawn[1], CHAIR)


@pytest.mark.slow
def test_larger_batches_give_the_same_answers(evaluate, one_by_one):
    _, samples = evaluate(AGLA, [POPE, CHAIR], batch_size=10)
    for task in (POPE, CHAIR):
        assert texts(samples, task) == texts(one_by_one[1], task)


def test_larger_batches_in_half_precision_are_told(capsys):
    LvlmGuard(pretrained="embedded", method="greedy", device="cpu", dtype="bfloat16", batch_size=4)
    assert "Answers were made 4 at a time in bfloat16" in capsys.readouterr().err
    for quiet in ({"dtype": "bfloat16"}, {"batch_size": 4}):
        LvlmGuard(pretrained="embedded", method="greedy", device="cpu", **quiet)
    assert "at a time" not in capsys.readouterr().err


def test_every_sample_tells_its_cost(one_by_one):
    costs = [sample["token_counts"][0] for sample in one_by_one[1][CHAIR].values()]
    for cost in costs:
        assert cost["output_tokens"] == cost["forwards"] > 4
        assert cost["seconds"] > 0
        assert cost["ended"] is True
    assert sum(cost["masks"] for cost in costs) > 0
    assert sum(cost["local_forwards"] for cost in costs) > 0


@pytest.mark.slow
def test_a_task_given_as_a_dict_has_the_simple_layout_and_the_same_answers(evaluate, one_by_one):
    task = {"task": CHAIR}
    _, samples = evaluate(AGLA, [task], limit=3)
    assert texts(samples, CHAIR) == {doc: texts(one_by_one[1], CHAIR)[doc] for doc in range(3)}


@pytest.mark.slow
def test_repeats_have_seeds_of_their_own(evaluate):
    _, drawn = evaluate(AGLA, [CHAIR], gen_kwargs=SAMPLED, repeats=2, limit=6, batch_size=4)
    first, second = ([sample["resps"][0][k] for sample in drawn[CHAIR].values()] for k in (0, 1))
    assert first != second
    _, again = evaluate(f"{AGLA},seed=1", [CHAIR], gen_kwargs=SAMPLED, limit=6)
    assert second == list(texts(again, CHAIR).values())


@pytest.mark.slow
def test_the_answers_limit_and_stops_are_honoured(evaluate, one_by_one):
    _, cut = evaluate(AGLA, [CHAIR], gen_kwargs="max_new_tokens=3", limit=2)
    assert [s["token_counts"][0]["output_tokens"] for s in cut[CHAIR].values()] == [3, 3]
    assert not any(s["token_counts"][0]["ended"] for s in cut[CHAIR].values())
    _, stopped = evaluate(AGLA, [CHAIR], gen_kwargs="until=shows", limit=2)
    whole = texts(one_by_one[1], CHAIR)
    assert texts(stopped, CHAIR) == {doc: whole[doc].split("shows")[0] for doc in range(2)}
    assert all(s["token_counts"][0]["ended"] for s in stopped[CHAIR].values())


@pytest.mark.slow
def test_beams_are_honoured(evaluate):
    _, plain = evaluate("pretrained=embedded,method=greedy", [CHAIR], limit=6)
    _, beams = evaluate("pretrained=embedded,method=greedy", [CHAIR], limit=6, gen_kwargs="num_beams=4")
    assert texts(plain, CHAIR) != texts(beams, CHAIR)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ("pretrained=embedded,method=aglaa", UnknownNameError, "Did you mean 'agla'"),
        ("pretrained=embedded,method=agla,alfa=2", KnobError, "Did you mean 'alpha'"),
        ("pretrained=embedded,method=agla,alpha=-1", KnobError, "alpha"),
        ("pretrained=embedded", KnobError, "lacks method="),
        ("method=agla", KnobError, "lacks pretrained="),
        ("pretrained=/no/such/folder,method=agla", GuardError, "/no/such/folder"),
        ("pretrained=embedded,method=agla,revision=main", KnobError, "on this machine"),
        ("pretrained=embedded,method=agla,dtype=float99", KnobError, "float99"),
        ("pretrained=embedded,method=agla,device=toaster", KnobError, "device is toaster"),
    ],
)
def test_bad_arguments_end_the_run(evaluate, args, error, match):
    with pytest.raises(error, match=match):
        evaluate(args, [POPE], limit=1)


def test_unknown_generation_arguments_end_the_run(evaluate):
    with pytest.raises(UnsupportedCallError, match=r"'temprature' .* Did you mean 'temperature'"):
        evaluate(AGLA, [POPE], limit=1, gen_kwargs="temprature=1")


def test_an_error_of_generate_ends_the_run_and_is_no_empty_answer(evaluate, tmp_path):
    """A picture without a question can't be matched: generate() raises."""
    rows = [{"question": question, "answer": "yes", "image": name} for question, name in (("is it ?", 0), (" ", 1))]
    folder = local_task(tmp_path, rows)
    with pytest.raises(TextError, match="question") as raised:
        evaluate(AGLA, ["mute"], include=[folder])
    assert raised.value.__notes__ == ["While answering document 1 of the task mute."]


def test_a_picture_that_is_gone_ends_the_run(evaluate, tmp_path):
    folder = local_task(tmp_path, [{"question": "is it ?", "answer": "yes", "image": 0}])
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        evaluate(AGLA, ["mute"], include=[folder])


def local_task(folder, rows):
    """Write a task of one's own over pictures that stay in the folder."""
    import yaml
    from PIL import Image

    from lvlm_guard.evals.lmms.localize import write_rows

    for row in rows:
        path = folder / f"{row['image']}.png"
        Image.new("RGB", (96, 96), (90, 10 * row["image"], 30)).save(path)
        row["image"] = {"bytes": None, "path": str(path)}
    write_rows(rows, folder / "mute.parquet")
    task = {
        "task": "mute",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": "mute.parquet"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 4, "until": []},
        "metric_list": [{"metric": "exact_match"}],
    }
    written = yaml.safe_dump(task) + "doc_to_visual: !function lvlm_guard.evals.lmms.scoring.visual\n"
    (folder / "mute.yaml").write_text(written)
    return folder


def test_what_is_no_generation_says_so_by_name(evaluate):
    model = LvlmGuard(pretrained="embedded", method="greedy", device="cpu")
    with pytest.raises(NotImplementedError, match="lvlm_guard only generates"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="lvlm_guard answers in one turn"):
        model.generate_until_multi_round([])


@pytest.mark.slow
def test_one_model_serves_two_runs(evaluate, one_by_one):
    """lmms-eval deletes the modules of a model after each run."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from lvlm_guard.evals.lmms import TASKS

    model = LvlmGuard.create_from_arg_string(AGLA, {"device": "cpu", "batch_size": 1})
    manager = TaskManager(include_path=[str(TASKS)], include_defaults=False)
    for _ in range(2):
        found = simple_evaluate(model=model, tasks=[CHAIR], task_manager=manager, limit=2, bootstrap_iters=0)
        said = {s["doc_id"]: s["resps"][0][0] for s in found["samples"][CHAIR]}
        assert said == {doc: texts(one_by_one[1], CHAIR)[doc] for doc in range(2)}


def test_the_scores_are_those_of_our_scorers(one_by_one):
    from lvlm_guard.evals.metrics import chair
    from lvlm_guard.evals.tasks.world import NOUNS

    result, samples = one_by_one
    rows = [{"question_id": doc, "label": s["target"], "answer": s["resps"][0][0]} for doc, s in samples[POPE].items()]
    scores = pope_scores.score(rows)
    for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert result["results"][POPE][f"{metric},none"] == pytest.approx(scores[metric])
    captions = [{"image_id": doc, "caption": s["resps"][0][0]} for doc, s in samples[CHAIR].items()]
    truth = {doc: s["target"].split(", ") for doc, s in samples[CHAIR].items()}
    shares = chair.score(captions, truth, vocabulary=NOUNS)
    for metric in ("chair_s", "chair_i", "object_recall", "length"):
        assert result["results"][CHAIR][f"{metric},none"] == pytest.approx(shares[metric])


@pytest.mark.slow
def test_finished_answers_are_found_again(evaluate, one_by_one, tmp_path):
    args = f"{AGLA},store={tmp_path}"
    evaluate(args, [CHAIR], limit=4)
    (kept,) = tmp_path.glob("*.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert [json.loads(line)["doc_id"] for line in lines] == [0, 1, 2, 3]
    kept.write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])  # as kill -9 leaves it
    _, again = evaluate(args, [CHAIR])
    whole = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
    assert sorted(row["doc_id"] for row in whole) == list(range(12)), "two were found, ten were asked"
    assert texts(again, CHAIR) == texts(one_by_one[1], CHAIR)
    before = again[CHAIR][0]["token_counts"][0]
    assert before["seconds"] == json.loads(lines[0])["seconds"], "an answer keeps what it cost"


@pytest.mark.slow
def test_another_setting_shares_no_answers(evaluate, tmp_path):
    for args in (AGLA, f"{AGLA},beta=0.1"):
        evaluate(f"{args},store={tmp_path}", [CHAIR], limit=1)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    evaluate(f"{AGLA},store={tmp_path}", [CHAIR], limit=1, gen_kwargs="max_new_tokens=5")
    rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len({row["document"] for row in rows}) == 2, "the same document, asked for a shorter answer, is another"
    assert len(rows) == 3


@pytest.mark.slow
def test_a_batch_that_was_answered_in_part_is_asked_as_a_whole(evaluate, tmp_path):
    args = f"{AGLA},store={tmp_path},batch_size=4"
    evaluate(args, [CHAIR], limit=4)
    (kept,) = tmp_path.glob("*.jsonl")
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:3]))
    _, again = evaluate(args, [CHAIR], limit=4)
    assert len(kept.read_text().splitlines()) == 3 + 4
    assert len(again[CHAIR]) == 4


@pytest.mark.slow
def test_lmms_evals_own_cache_is_keyed_by_code_too(evaluate, tmp_path):
    from lvlm_guard.evals.lmms.arguments import code_name

    args = f"{AGLA},code={code_name()}"
    _, fresh = evaluate(args, [CHAIR], limit=2, use_cache=str(tmp_path))
    _, cached = evaluate(args, [CHAIR], limit=2, use_cache=str(tmp_path))
    assert texts(fresh, CHAIR) == texts(cached, CHAIR)
    assert cached[CHAIR][0]["token_counts"] == [None], "a cached answer has no cost"
    with pytest.raises(KnobError, match="the code that runs is"):
        evaluate(args.replace("code=v", "code=v9"), [CHAIR], limit=2, use_cache=str(tmp_path))
