"""Asking: what is written, what is refused, and that no end of it loses anything or changes a byte."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import lvlm_guard
from lvlm_guard.errors import GuardError, KnobError, UnknownNameError
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer import ask as asking
from lvlm_guard.evals.infer import record
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.generate import Prepared
from lvlm_guard.evals.infer.record import code_digest
from lvlm_guard.evals.spec.answers import table_of
from lvlm_guard.evals.spec.items import YES_NO
from lvlm_guard.evals.spec.settings import Settings

SETTINGS = Settings(limit=1, captions=2, seeds=2, batch=8)
TINY = replace(SETTINGS, methods=("agla",), controls=False, seeds=1)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def quiet(settings, out, **options):
    return ask(settings, out, **{"echo": lambda _: None, "bar": False, "workers": 1} | options)


def note(folder):
    return json.loads((folder / "asked.json").read_text())


def table(folder):
    return (folder / "answers.parquet").read_bytes()


def rows(folder):
    return pq.read_table(folder / "answers.parquet").to_pylist()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return quiet(SETTINGS, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return quiet(TINY, tmp_path_factory.mktemp("tiny"))


def test_methods_and_their_controls_answer_each_in_its_role(first):
    decoders = {d["name"]: d for d in note(first)["decoders"]}
    roles = {row["decoder"]: (row["role"], row["baseline"]) for row in rows(first)}
    assert roles["greedy"] == ("reference", None)
    assert {roles[name][0] for name in ("agla", "vote", "vcd")} == {"method"}
    assert {roles[name][0] for name in ("apc(0.5)", "agla-random", "sample-matched")} == {"control"}
    assert roles == {name: (d["role"], d["baseline"]) for name, d in decoders.items() if not d["derive"]}
    assert {name for name, d in decoders.items() if d["derive"]} == {"tilt", "olm"}


def test_captions_are_asked_of_those_that_have_any_and_items_to_calibrate_of_plain_ones_and_controls(first):
    captions, beside = (
        {row["decoder"] for row in rows(first) if chosen(row)}
        for chosen in (lambda row: row["task"] == "world_chair", lambda row: row["split"] == "val")
    )
    assert {"greedy", "agla"} <= captions
    assert not captions & {"matcher"}
    assert {"greedy", "sample", "apc(0.5)", "agla-random"} <= beside
    assert not beside & {"agla", "vote", "vcd", "matcher"}


def test_what_scores_and_reports_need_of_the_items_is_beside_the_answers(first):
    items = [json.loads(line) for line in (first / "items.jsonl").read_bytes().split(b"\n")[:-1]]
    keys = list(dict.fromkeys((row["task"], row["split"], row["item"], row["picture"]) for row in rows(first)))
    assert [(i["task"], i["split"], i["item"], i["picture"]) for i in items] == keys
    assert {i["truth"] for i in items if i["kind"] in YES_NO} == {"yes", "no"}
    assert {"kind", "prompt", "question", "truth", "rows", "tags"} <= items[0].keys()
    assert not {i["picture"] for i in items if i["split"] == "val"} & {i["prompt"] for i in items}


@pytest.mark.slow
def test_a_run_can_be_repeated_from_its_note_alone(tiny, tmp_path):
    told = note(tiny)
    for key in ("version", "code", "weights", "packages", "tasks", "decoders", "questions", "identity", "started"):
        assert told[key]
    assert {"torch", "transformers", "python", "machine", "commit"} <= told["environment"].keys()
    again = quiet(Settings.of(told["settings"]), tmp_path)
    assert table(again) == table(tiny)
    assert note(again)["identity"] == told["identity"]
    assert (again / "items.jsonl").read_bytes() == (tiny / "items.jsonl").read_bytes()


def test_a_whole_run_is_asked_nothing_and_loads_no_model(tiny, monkeypatch):
    monkeypatch.setattr(asking, "prepare_run", lambda *_: pytest.fail("a model was loaded"))
    before = table(tiny)
    assert quiet(TINY, tiny) == tiny
    assert table(tiny) == before


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_end_in_the_bytes_of_one_process(tiny, tmp_path, monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        assert not (tmp_path / "answers.parquet").exists(), "only the last one makes the table"
        quiet(TINY, tmp_path)
    assert table(tmp_path) == table(tiny)
    assert not list((tmp_path / "answers").iterdir())


@pytest.mark.slow
def test_shards_of_several_machines_become_a_table_by_one_more_call_without_a_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        quiet(TINY, tmp_path / f"machine-{rank}")
    shutil.copy(tmp_path / "machine-1/answers/rank-1.jsonl", tmp_path / "machine-0/answers")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(asking, "prepare_run", lambda *_: pytest.fail("a model was loaded"))
    assert table(quiet(TINY, tmp_path / "machine-0")) == table(tiny)


@pytest.mark.slow
def test_a_rank_that_died_is_gone_on_with_by_one_process(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    quiet(TINY, tmp_path)
    shard = tmp_path / "answers" / "rank-1.jsonl"
    shard.write_bytes(shard.read_bytes()[:-100])
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    told = []
    quiet(TINY, tmp_path, echo=told.append)
    assert any("answers are there already" in line for line in told)
    assert table(tmp_path) == table(tiny)


@contextmanager
def held_elsewhere(lock):
    """Hold a rank's lock in another process: lmms-eval's evaluator makes those of one process re-entrant."""
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n print(flush=True)\n sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        yield
        other.stdin.close()


@pytest.mark.slow
def test_a_rank_with_nothing_left_keeps_the_shard_of_one_that_asks_again_what_failed(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    kept = []
    for rank in range(2):  # one of them has the block whose answer failed
        folder = Path(shutil.copytree(tiny, tmp_path / str(rank)))
        told = rows(folder)
        told[-1] |= {"text": "", "failed": "answered 400"}
        pq.write_table(table_of(told), folder / "answers.parquet")
        other = folder / "answers" / f"rank-{1 - rank}.jsonl"
        other.parent.mkdir(exist_ok=True)
        other.touch()
        monkeypatch.setenv("RANK", str(rank))
        with held_elsewhere(folder / f".rank-{1 - rank}.lock"):
            quiet(TINY, folder)
        kept.append((other.exists(), rows(folder)[-1]["failed"]))
    assert sorted(kept, key=str) == [(False, None), (True, "answered 400")]


def test_ranks_can_not_start_over_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match="can't agree on when to drop"):
        quiet(TINY, tmp_path, started_over=True)


@pytest.mark.slow
def test_answers_of_another_run_are_neither_mixed_in_nor_lost(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    with pytest.raises(DataError, match=r"settings.seeds \(1, now 3\).*--start-over"):
        quiet(replace(TINY, seeds=3), copy)
    assert table(copy) == table(tiny)
    (copy / "answers" / "rank-0.jsonl").write_text("{}\n")
    (copy / "asked.json").unlink()
    with pytest.raises(DataError, match="unknown run"):
        quiet(TINY, copy)
    assert table(copy) == table(tiny)
    (copy / "results.json").write_text("{}")
    quiet(replace(TINY, methods=("vote",)), copy, started_over=True)
    assert {row["decoder"] for row in rows(copy)} == {"greedy", "vote"}
    assert not (copy / "results.json").exists()
    (copy / "asked.json").write_text("{")
    with pytest.raises(DataError, match=r"can't be read.*--start-over"):
        quiet(TINY, copy)


def test_a_run_does_not_go_on_with_another_matcher_or_a_server_with_other_knobs(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    told = note(copy)
    told["matcher"] = "another"
    told["decoders"][1]["knobs"]["alpha"] = 3.0
    (copy / "asked.json").write_text(json.dumps(told))
    (copy / "answers.parquet").unlink()
    with pytest.raises(DataError, match=r"made with other decoders, matcher than now.*--start-over"):
        quiet(TINY, copy)


@pytest.mark.slow
def test_another_run_of_a_command_that_replaces_is_dropped_and_no_other_one(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    other = replace(TINY, methods=("vote",))
    with pytest.raises(DataError, match="holds a run with other"):
        quiet(other, copy, command="demo", replaces=True)
    quiet(other, copy, command="eval ask", replaces=True)
    assert {row["decoder"] for row in rows(copy)} == {"greedy", "vote"}


HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "


@pytest.mark.parametrize("rank", [0, 5], ids=["the same rank", "a rank of another world"])
def test_two_processes_do_not_ask_the_same_questions(tmp_path, rank):
    words = [sys.executable, "-c", HOLD + "time.sleep(60)", str(tmp_path / f".rank-{rank}.lock")]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        holder.stdout.read(1)
        with pytest.raises(RunError, match="Another process is working"), record.hold(tmp_path, 0, 2, wait=0.3):
            pass
        with pytest.raises(RunError, match="Another process is working"):
            quiet(TINY, tmp_path, started_over=True)
        with record.hold(tmp_path, 1, 8):
            pass  # another rank of a world that has them all
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sweep": {"alpha": (1.0, 2.0)}}, DataError, "validation split"),
        ({"methods": ("algo",)}, UnknownNameError, "Did you mean 'agla'"),
        ({"tasks": ("world_poppe",)}, UnknownNameError, "Did you mean 'world_pope'"),
        ({"tasks": ("world_pope", "world_pope")}, DataError, "world_pope twice"),
        ({"knobs": {"agla": {"alfa": 1.0}}}, KnobError, "alpha"),
        ({"knobs": {"pai": {"alpha": 1.0}}}, KnobError, "none of the methods"),
        ({"limit": 0}, DataError, "limit counts pictures"),
        ({"limit": 100_000}, DataError, "scenes"),
        ({"batch": 0}, DataError, "at least 1"),
        ({"model": "no/such-model"}, GuardError, "no/such-model"),
        ({"split": "val", "sweep": {"gamma": (1.0,)}}, KnobError, "'gamma' to sweep"),
    ],
)
def test_what_can_not_be_run_is_refused_with_what_to_do(tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        quiet(replace(SETTINGS, **changes), tmp_path)
    assert not (tmp_path / "answers.parquet").exists()


def test_a_sweep_asks_every_point_on_the_validation_split_and_calibrates_nothing(tmp_path):
    sweep = {"alpha": (0.5, 2.0), "beta": (0.1, 0.5)}
    quiet(replace(TINY, split="val", sweep=sweep, tasks=("world_pope",)), tmp_path)
    points = [d["point"] for d in note(tmp_path)["decoders"] if d["point"]]
    assert points == [{"alpha": a, "beta": b} for a in (0.5, 2.0) for b in (0.1, 0.5)]
    assert {row["split"] for row in rows(tmp_path)} == {"val"}
    assert note(tmp_path)["tasks"][0]["calibration"] == 0


def test_the_validation_split_has_no_question_of_the_test_split(tiny, tmp_path):
    val = quiet(replace(TINY, split="val"), tmp_path)
    ours, theirs = (
        {d for n, d in note(f)["questions"].items() if n.endswith(s)} for f, s in ((val, "val"), (tiny, "test"))
    )
    assert len(ours) == len(theirs) == 2
    assert not ours & theirs


def test_half_precision_in_batches_is_warned_of_by_what_was_loaded_not_by_what_was_asked_for():
    def warned(batch, dtype):
        return Prepared(Settings(batch=batch), [], [], None, where={"dtype": dtype}).warnings()

    assert "8 at a time in bfloat16" in warned(8, "bfloat16")[0]
    assert warned(8, "float32") == warned(1, "float16") == []


AT_TORCH = """
import os, sys
seen = []
sys.addaudithook(lambda event, told: event == "import" and told[0] == "torch" and seen.append(os.environ["MKL_CBWR"]))
try:
    {}
finally:
    print(seen[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "from lvlm_guard.cli import main; main(['eval', 'ask', '--tasks', 'world_pop', '--out', 'none'])",
        "import lvlm_guard.evals.infer.ranks, lvlm_guard.evals.infer.ask",  # as a worker does
    ],
    ids=["the command", "a worker"],
)
def test_products_are_asked_to_be_the_same_wherever_operands_lie_before_torch_is_there(tmp_path, code):
    around = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    command = [sys.executable, "-c", AT_TORCH.format(code)]
    done = subprocess.run(command, env=around, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["AUTO,STRICT"], done.stderr


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small tree in the place of the package's source."""
    for name in (
        *("engine/steps.py", "methods/vcd.py", "cli/ask.py", "report/page.py", "bench/time.py", "embedded/train.py"),
        *(
            "adapters/clip.py",
            "serve/front.py",
            "evals/infer/ask.py",
            "evals/decoders/lineup.py",
            "evals/tasks/pope.py",
        ),
        *("evals/stats/score.py", "evals/metrics/pope.py", "evals/report/page.py", "evals/spec/items.py"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(lvlm_guard, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path


def test_a_mended_scorer_costs_no_run_and_a_changed_engine_does(source):
    before, beside = code_digest(adapters=False), code_digest(adapters=True)
    for name in ("stats/score.py", "metrics/pope.py", "report/page.py"):
        (source / "evals" / name).write_text("mended\n")
    for name in ("cli/ask.py", "report/page.py", "bench/time.py", "embedded/build.py", "serve/front.py"):
        (source / name).write_text("mended\n")
    assert (code_digest(adapters=False), code_digest(adapters=True)) == (before, beside)
    (source / "adapters/clip.py").write_text("mended\n")
    assert code_digest(adapters=False) == before
    assert code_digest(adapters=True) != beside
    for name in (
        *("engine/steps.py", "methods/vcd.py"),
        *(f"evals/{one}" for one in ("infer/ask.py", "decoders/lineup.py", "tasks/mme.py", "spec/items.py")),
    ):
        last = code_digest(adapters=False)
        (source / name).write_text("changed\n")
        assert code_digest(adapters=False) != last, name


def test_neither_cores_nor_workers_nor_requests_in_flight_are_part_of_a_run(tiny, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setattr(asking, "prepare_run", lambda *_: pytest.fail("a model was loaded"))
    assert quiet(TINY, tiny, workers=7, concurrency=3) == tiny


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_what_it_has_and_the_same_command_goes_on(tiny, tmp_path):
    shard = tmp_path / "answers" / "rank-0.jsonl"

    def full(line):  # the disk fills up once the run has begun
        if line.startswith("Asking"):
            shard.parent.mkdir()
            shard.symlink_to("/dev/full")

    with pytest.raises(RunError, match=r"No space left on device.*goes on from there"):
        quiet(TINY, tmp_path, echo=full)
    shard.unlink()
    assert table(quiet(TINY, tmp_path)) == table(tiny)
