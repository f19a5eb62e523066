"""Answers on disk: whole blocks only, found again after any end, never those of another question."""

import json

import pytest

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.store import Answers, Asked, Job
from lvlm_guard.evals.spec.items import EvalTask, Item, Said

ITEMS = [Item(str(i), str(i // 2), f"question {i}", ()) for i in range(10)]
TASK = EvalTask("quiz", "pope", ITEMS, 4)
ASKED = [Asked(TASK, {"greedy": 1, "sample": 2})]


def said(decoder, seed, item):
    return Said(f"{decoder} {seed} {item.key}", tokens=3, seconds=0.5)


def answer(answers, jobs):
    for job in jobs:
        for decoder, seed in job.todo:
            answers.add(
                (decoder, job.task, seed, job.block),
                [said(decoder, seed, item) for item in TASK.block(job.block, answers.batch)],
            )


def texts(answers, decoder="greedy", seed=0):
    return [one.text if one else None for one in answers.of(decoder, "quiz", seed)]


def test_every_decoder_is_asked_a_block_before_the_next_block(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    jobs = answers.open_jobs()
    everyone = (("greedy", 0), ("sample", 0), ("sample", 1))
    # the order turns, so that nobody is always the first to be asked about new pictures
    assert jobs == [Job("quiz", block, everyone[block:] + everyone[:block]) for block in range(3)]
    assert [answers.size(job) for job in jobs] == [12, 12, 6]
    answer(answers, jobs)
    assert answers.open_jobs() == []
    assert texts(answers, "sample", 1) == [f"sample 1 {i}" for i in range(10)]


def parses(line):
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


@pytest.mark.parametrize("cut", range(0, 700, 35))
def test_a_file_that_was_cut_anywhere_keeps_its_whole_blocks_and_asks_for_the_rest(tmp_path, cut):
    first = Answers(tmp_path, ASKED, batch=4)
    answer(first, first.open_jobs())
    path = tmp_path / "greedy.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    again = Answers(tmp_path, ASKED, batch=4)
    lines = sum(parses(line) for line in whole[:cut].splitlines())
    assert sum(text is not None for text in texts(again)) == (10 if lines == 10 else lines // 4 * 4)
    assert all(name == "greedy" for job in again.open_jobs() for name, _ in job.todo)
    answer(again, again.open_jobs())
    assert texts(again) == texts(first)
    assert texts(Answers(tmp_path, ASKED, batch=4)) == texts(first)


def test_answers_that_failed_are_reported_now_and_asked_for_again(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    answers.add(("greedy", "quiz", 0, 0), [Said("", failed="no connection")] * 4)
    assert answers.of("greedy", "quiz", 0)[0].failed == "no connection"
    assert Job("quiz", 0, (("sample", 0), ("sample", 1))) in answers.open_jobs()
    assert ("greedy", 0) in Answers(tmp_path, ASKED, batch=4).open_jobs()[0].todo


@pytest.mark.parametrize(
    "other",
    [
        EvalTask("quiz", "pope", ITEMS[::-1], 4),
        EvalTask("quiz", "pope", [Item(i.key, i.picture, i.prompt + "?", ()) for i in ITEMS], 4),
        EvalTask("exam", "pope", ITEMS, 4),
    ],
    ids=["another order", "another prompt", "another task"],
)
def test_answers_to_other_questions_are_not_taken_over(tmp_path, other):
    first = Answers(tmp_path, ASKED, batch=4)
    answer(first, first.open_jobs())
    again = Answers(tmp_path, [Asked(other, {"greedy": 1})], batch=4)
    assert len(again.open_jobs()) == 3


def test_answers_are_dropped_where_they_are_not_to_be_kept(tmp_path):
    first = Answers(tmp_path, ASKED, batch=4)
    answer(first, first.open_jobs())
    assert len(Answers(tmp_path, ASKED, batch=4, keep=False).open_jobs()) == 3
    assert not list(tmp_path.iterdir())


def test_more_seeds_keep_the_answers_of_the_first_ones(tmp_path):
    first = Answers(tmp_path, ASKED, batch=4)
    answer(first, first.open_jobs())
    more = Answers(tmp_path, [Asked(TASK, {"sample": 3})], batch=4)
    assert {pair for job in more.open_jobs() for pair in job.todo} == {("sample", 2)}


def test_a_line_holds_all_that_an_answer_cost(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    answer(answers, answers.open_jobs()[:1])
    row = json.loads((tmp_path / "greedy.jsonl").read_text().splitlines()[1])
    assert row["key"] == "1"
    assert row["prompt"] == "question 1"
    assert {"seconds", "tokens", "masks", "peak_mib", "local_tokens", "ended"} <= row.keys()


def test_a_full_disk_is_an_error_that_says_what_is_kept(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    answer(answers, answers.open_jobs()[:1])
    (tmp_path / "sample.jsonl").unlink()
    (tmp_path / "sample.jsonl").symlink_to("/dev/full")  # every write there fails as on a full disk
    with pytest.raises(RunError, match=r"No space left on device.*kept.*goes on from there"):
        answer(answers, answers.open_jobs())
    (tmp_path / "sample.jsonl").unlink()
    assert texts(Answers(tmp_path, ASKED, batch=4))[:4] == [f"greedy 0 {i}" for i in range(4)]
