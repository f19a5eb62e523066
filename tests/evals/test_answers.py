"""Answers on disk: whole blocks only, found again after any end, one table in one order whoever asked."""

import json
import random
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.store import Answers, Asked, Job
from lvlm_guard.evals.spec.answers import COSTS, ROLES, SCHEMA, Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask, Item, Said

ITEMS = [Item(str(i), str(i // 2), f"question {i}", ()) for i in range(10)]
BESIDE = [Item(f"v{i}", f"v{i}", f"question v{i}", ()) for i in range(3)]
TASK = EvalTask("quiz", "pope", ITEMS, 4)
NAMES = (
    {"name": "greedy", "role": "reference", "baseline": None, "seeds": 1},
    {"name": "runs/x[matcher=a/b], odd", "role": "method", "baseline": "greedy", "seeds": 2},
)
ASKED = [Asked(TASK, NAMES), Asked(EvalTask("quiz", "pope", BESIDE, 4, split="val"), NAMES[:1])]
EVERYONE = (("greedy", 0), (NAMES[1]["name"], 0), (NAMES[1]["name"], 1))


def said(who, item):
    return Said(f"{who[0]} {who[1]} {item.key}", tokens=3, seconds=random.random(), score=0.1, cut_at=(1, 2, 3, 4, 5))


def answer(answers, rank=0, world=1, jobs=None):
    with answers.open(rank):
        for job in answers.jobs(rank, world) if jobs is None else jobs:
            for who in job.todo:
                answers.add(job, who, [said(who, item) for item in job.items])
    answers.read()


def whole(folder, world=1):
    for rank in range(world):
        answer(Answers(folder, ASKED, batch=4), rank, world)
    answers = Answers(folder, ASKED, batch=4)
    answers.compact()
    assert answers.whole
    assert not list((folder / "answers").iterdir())
    return (folder / "answers.parquet").read_bytes()


def test_the_dataclass_and_the_table_have_the_same_columns():
    assert {field.name for field in fields(Answer)} == {*SCHEMA.names, *COSTS.names}
    where = {"task": "t", "split": "val", "item": "1", "picture": "p", "decoder": "d"}
    rows = [Answer("a\u2028b", cut_at=(1, 2), role=role, **where) for role in ROLES]
    assert table_of(rows).schema == SCHEMA
    told = table_of(rows).to_pylist()[0] | {"cut_at": (1, 2)}
    assert told == {name: getattr(rows[0], name) for name in SCHEMA.names}


def test_every_decoder_is_asked_a_block_before_the_next_block(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    jobs = list(answers.jobs())
    # the order turns, so that nobody is always the first to be asked about new pictures
    assert [job.todo for job in jobs] == [*(EVERYONE[n:] + EVERYONE[:n] for n in range(3)), (("greedy", 0),)]
    assert [(job.block, job.size) for job in jobs] == [(0, 12), (1, 12), (2, 6), (0, 3)]
    assert (answers.total, answers.left) == (33, 33)
    answer(answers)
    assert (list(answers.jobs()), answers.left, answers.covered, answers.whole) == ([], 0, True, False)


def test_the_table_has_one_order_and_the_same_bytes_however_many_ranks_asked(tmp_path):
    alone = whole(tmp_path / "1")
    assert [whole(tmp_path / str(world), world) for world in (2, 3, 7)] == [alone] * 3
    table = pq.read_table(tmp_path / "1" / "answers.parquet")
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    expected = [("test", i.key, *who) for i in ITEMS for who in EVERYONE] + [
        ("val", i.key, "greedy", 0) for i in BESIDE
    ]
    assert [(row["split"], row["item"], row["decoder"], row["seed"]) for row in rows] == expected
    assert {(row["role"], row["baseline"]) for row in rows} == {("reference", None), ("method", "greedy")}
    costs = pq.read_table(tmp_path / "1" / "costs.parquet")
    assert costs.schema == COSTS
    assert costs["item"].to_pylist() == table["item"].to_pylist()
    assert min(costs["seconds"].to_pylist()) > 0


@pytest.mark.parametrize("cut", [*range(0, 11_000, 500), 10**6])
def test_a_shard_that_was_cut_anywhere_keeps_its_whole_blocks_and_the_rest_is_asked(tmp_path, cut):
    answer(Answers(tmp_path, ASKED, batch=4))
    path = tmp_path / "answers" / "rank-0.jsonl"
    content = path.read_bytes()
    assert len(content) > 10_500
    path.write_bytes(content[:cut])
    answers = Answers(tmp_path, ASKED, batch=4)
    lines = content[:cut].count(b"\n")
    assert answers.left == 33 - lines
    assert sum(job.size for job in answers.jobs()) >= answers.left
    answer(answers)
    answers.compact()
    assert (tmp_path / "answers.parquet").read_bytes() == whole(tmp_path / "other")


def test_ranks_that_died_are_gone_on_with_by_another_number_of_ranks(tmp_path):
    for rank in range(3):
        answers = Answers(tmp_path, ASKED, batch=4)
        answer(answers, rank, 3, list(answers.jobs(rank, 3))[: rank % 2])
    assert Answers(tmp_path, ASKED, batch=4).left == 21
    for rank in range(2):
        answer(Answers(tmp_path, ASKED, batch=4), rank, 2)
    answers = Answers(tmp_path, ASKED, batch=4)
    assert answers.covered
    answers.compact()
    assert (tmp_path / "answers.parquet").read_bytes() == whole(tmp_path / "other")


def test_of_two_answers_to_one_question_the_first_counts(tmp_path):
    answer(Answers(tmp_path, ASKED, batch=4))
    (tmp_path / "answers" / "rank-1.jsonl").write_bytes(
        (tmp_path / "answers" / "rank-0.jsonl").read_bytes().replace(b"greedy 0", b"GREEDY 0")
    )
    answers = Answers(tmp_path, ASKED, batch=4)
    answers.compact()
    assert pq.read_table(tmp_path / "answers.parquet").num_rows == 33
    assert "GREEDY" not in str(pq.read_table(tmp_path / "answers.parquet")["text"].to_pylist())


def test_a_shard_that_another_rank_is_writing_is_read_up_to_its_last_whole_line(tmp_path):
    answer(Answers(tmp_path, ASKED, batch=4), 1, 2)
    path = tmp_path / "answers" / "rank-1.jsonl"
    before, torn = Answers(tmp_path, ASKED, batch=4).left, path.read_bytes() + b'{"task": "quiz", "spl'
    path.write_bytes(torn)
    answers = Answers(tmp_path, ASKED, batch=4)
    assert answers.left == before
    with answers.open(0):
        pass
    assert path.read_bytes() == torn, "only its own rank may cut it"


def test_a_row_that_failed_is_in_the_table_and_asked_again_the_next_time(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=1)
    with answers.open():
        for job in answers.jobs():
            for who in job.todo:
                bad = (who[0], job.items[0].key) == ("greedy", "7")
                answers.add(job, who, [Said("", failed="answered 400") if bad else said(who, job.items[0])])
    answers.read()
    assert (answers.left, answers.covered) == (1, True)
    answers.compact()
    first = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [(row["item"], row["failed"]) for row in first if row["failed"]] == [("7", "answered 400")]
    for name in ("results.json", "report.html"):
        (tmp_path / name).write_text("of the table before")
    again = Answers(tmp_path, ASKED, batch=1)
    assert (again.whole, again.left) == (True, 1)
    (job,) = again.jobs()
    assert (job.items, job.todo) == ([ITEMS[7]], (("greedy", 0),))
    answer(again)
    assert not again.whole
    again.compact()
    second = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row for row in second if row["item"] != "7"] == [row for row in first if row["item"] != "7"]
    assert not any(row["failed"] for row in second)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "report.html").exists()


def test_a_table_that_is_there_with_its_shards_was_interrupted_while_these_were_dropped(tmp_path):
    answer(Answers(tmp_path, ASKED, batch=4))
    shard = (tmp_path / "answers" / "rank-0.jsonl").read_bytes()
    Answers(tmp_path, ASKED, batch=4).compact()
    (tmp_path / "answers" / "rank-0.jsonl").write_bytes(shard)
    answers = Answers(tmp_path, ASKED, batch=4)
    assert answers.whole
    table = (tmp_path / "answers.parquet").stat().st_ino
    answers.compact()
    assert (tmp_path / "answers.parquet").stat().st_ino == table, "it is not written again"
    assert not list((tmp_path / "answers").iterdir())
    assert Answers(tmp_path, ASKED, batch=4).left == 0


@pytest.mark.parametrize(
    "other",
    [
        EvalTask("quiz", "pope", [Item(f"x{i.key}", i.picture, i.prompt, ()) for i in ITEMS], 4),
        EvalTask("exam", "pope", ITEMS, 4),
    ],
    ids=["other keys", "another task"],
)
def test_answers_to_other_questions_are_not_taken_over(tmp_path, other):
    answer(Answers(tmp_path, ASKED, batch=4))
    assert Answers(tmp_path, [Asked(other, NAMES)], batch=4).left == 30


def test_what_a_server_can_not_measure_is_null_and_half_a_character_does_no_harm(tmp_path):
    nan, answers = float("nan"), Answers(tmp_path, ASKED, batch=1)
    odd = Said("a\u2028b\x85c \ud83d", forwards=nan, local_forwards=nan, local_tokens=nan, masks=nan)
    with answers.open():
        for job in answers.jobs():
            for who in job.todo:
                answers.add(job, who, [odd])
    assert b"NaN" not in (tmp_path / "answers" / "rank-0.jsonl").read_bytes()
    answers.read()
    answers.compact()
    row = pq.read_table(tmp_path / "answers.parquet").to_pylist()[0]
    assert row["text"] == "a\u2028b\x85c ?"
    assert (row["forwards"], row["masks"], row["score"]) == (None, None, None)


def test_a_line_is_a_row_of_the_table_and_what_it_cost(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    answer(answers)
    row = json.loads((tmp_path / "answers" / "rank-0.jsonl").read_text().splitlines()[1])
    assert set(SCHEMA.names) | {"seconds", "peak_mib"} <= row.keys()


def test_a_full_disk_is_an_error_that_says_what_is_kept(tmp_path):
    answers = Answers(tmp_path, ASKED, batch=4)
    answer(answers, 0, 2)
    (tmp_path / "answers" / "rank-1.jsonl").symlink_to("/dev/full")  # every write there fails as on a full disk
    with pytest.raises(RunError, match=r"No space left on device.*kept.*goes on from there"):
        answer(Answers(tmp_path, ASKED, batch=4), 1, 2)
    (tmp_path / "answers" / "rank-1.jsonl").unlink()
    assert Answers(tmp_path, ASKED, batch=4).left == answers.left


def test_a_table_of_another_run_is_refused(tmp_path):
    whole(tmp_path)
    with pytest.raises(RunError, match=r"has 33 rows where 30 were asked for.*--start-over"):
        Answers(tmp_path, ASKED[:1], batch=4)


PEAK = """
import resource, sys
from collections.abc import Sequence
from lvlm_guard.evals.infer.store import Answers, Asked
from lvlm_guard.evals.spec.items import EvalTask, Item, Said

class Items(Sequence):  # made when they are looked at: what is measured is the store, not the questions
    def __init__(self, begin, end): self.begin, self.end = begin, end
    def __len__(self): return self.end - self.begin
    def __getitem__(self, i):
        if isinstance(i, slice): return [Item(str(n), str(n // 6), "?", ()) for n in range(*i.indices(len(self)))]
        return Item(str(range(len(self))[i]), str(i // 6), "?", ())

from pathlib import Path
out, count = Path(sys.argv[1]), int(sys.argv[2])
decoders = [{"name": f"d{n}", "role": "method", "baseline": None, "seeds": 1} for n in range(10)]
asked = [Asked(EvalTask("quiz", "pope", Items(0, count // 10), 4), decoders)]
answers = Answers(out, asked, 64)
with answers.open():
    for job in answers.jobs():
        for who in job.todo:
            answers.add(job, who, [Said("yes, there is a dog in the image. " * 3, tokens=3) for _ in job.items])
answers = Answers(out, asked, 64)
assert answers.covered
answers.compact()
assert answers.whole
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(folder: Path, count: int) -> float:
    """Return the peak memory of writing, finding and tabling so many answers, MiB, in a process of its own."""
    words = [sys.executable, "-c", PEAK, str(folder), str(count)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_answers_take_the_memory_of_a_few_thousand(tmp_path):
    few, many = peak(tmp_path / "few", 10**4), peak(tmp_path / "many", 10**6)
    print(f"peak memory: {few:.0f} MiB at 10^4 answers, {many:.0f} MiB at 10^6")
    assert many - few < 80  # the answers themselves are 400 MB


def test_a_job_counts_its_answers():
    assert Job(0, TASK, 0, ITEMS[:3], EVERYONE).size == 9
