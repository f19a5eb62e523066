"""A run from its settings to its files: what is written, what is refused, and that no end of it loses anything."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lvlm_guard.errors import GuardError, KnobError, UnknownNameError
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer.run import Allowed, run
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.report.saved import read_run
from lvlm_guard.evals.spec.settings import Settings

SETTINGS = Settings(limit=2, captions=4, seeds=2, batch=8)
DECODERS = ["greedy", "sample", "sample-matched", "apc", "agla", "agla-sample", "agla-random", "vote", "matcher", "vcd"]


def quiet(settings, out, **options):
    return run(settings, out, echo=lambda _: None, bar=False, workers=1, report=False, **options)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return quiet(SETTINGS, tmp_path_factory.mktemp("run"))


def lasting(folder):
    """What must be the same however often a run was stopped."""
    content = json.loads((folder / "run.json").read_text())
    del content["times"]
    return content, (folder / "samples.jsonl").read_text()


def test_methods_stand_beside_greedy_and_their_controls(first):
    assert [d["name"] for d in first.run["decoders"]] == DECODERS
    matched = next(d for d in first.run["decoders"] if d["name"] == "sample-matched")
    assert matched["options"]["temperature"] == pytest.approx(1 / 3)  # AGLA's alpha is 2: 1 / (1 + alpha)
    assert {d["seeds"] for d in first.run["decoders"] if d["sampled"]} == {2}
    differences = {row["method"] for row in first.run["rows"] if "p_value" in row}
    assert {f"{name}-greedy" for name in DECODERS[1:]} <= differences
    assert {"agla-agla-random", "agla-sample-sample-matched", "agla-sample-apc", "vote-matcher"} <= differences


def test_without_controls_the_methods_stand_beside_greedy_alone_and_the_report_says_so(tmp_path):
    saved = quiet(replace(SETTINGS, methods=("vote",), tasks=("world_chair",), controls=False), tmp_path)
    assert [d["name"] for d in saved.run["decoders"]] == ["greedy", "vote"]
    assert any(flag.startswith("--no-controls") for flag in saved.run["flags"])


def test_scores_are_those_of_the_answers_that_were_written(first):
    asked = [s for s in first.samples if "pope_adversarial" in s["rows"]]
    for name in ("greedy", "agla", "vcd"):
        right = [pope.read(s["answers"][name][0]) == s["truth"] for s in asked]
        row = next(
            r
            for r in first.run["rows"]
            if (r["method"], r["task"], r["metric"]) == (name, "pope_adversarial", "accuracy")
        )
        assert row["value"] == pytest.approx(sum(right) / len(right))
        assert row["n"] == len(right)


def test_a_run_can_be_repeated_from_its_file_alone(first, tmp_path):
    content = json.loads((first.folder / "run.json").read_text())
    for key in ("version", "code", "weights", "environment", "tasks", "decoders"):
        assert content[key]
    assert all(task["digest"] for task in content["tasks"])
    assert {"torch", "transformers", "python", "machine", "commit"} <= content["environment"].keys()
    quiet(Settings.of(content["settings"]), tmp_path)
    assert lasting(tmp_path) == lasting(first.folder)


def test_time_and_memory_stand_beside_the_scores(first):
    found = {(r["method"], r["task"], r["metric"]) for r in [*first.run["rows"], *first.run["times"]["rows"]]}
    for task in ("world_pope", "world_chair"):
        for metric in ("tokens", "global_forwards", "local_forwards", "local_tokens", "masks", "seconds"):
            assert ("agla", task, metric) in found
        assert {("agla", task, "time_ratio"), ("agla", task, "peak_memory_mib")} <= found


def test_a_finished_run_is_scored_again_without_asking(first, tmp_path):
    shutil.copytree(first.folder, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    told = []
    run(SETTINGS, tmp_path / "copy", echo=told.append, bar=False, workers=1, report=False)
    assert not any(line.startswith("Asking") for line in told)
    assert lasting(tmp_path / "copy") == lasting(first.folder)


def test_answers_of_another_run_are_neither_mixed_in_nor_lost(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first.folder, copy)
    with pytest.raises(DataError, match=r"settings.seeds \(2, now 3\).*--start-over"):
        quiet(replace(SETTINGS, seeds=3), copy)
    assert lasting(copy) == lasting(first.folder)
    (copy / "begun.json").unlink()
    with pytest.raises(DataError, match="unknown run"):
        quiet(SETTINGS, copy)
    assert (copy / "answers" / "greedy.jsonl").exists()
    again = quiet(replace(SETTINGS, methods=("vote",), controls=False), copy, started_over=True)
    assert [d["name"] for d in again.run["decoders"]] == ["greedy", "vote"]


def test_a_run_does_not_go_on_with_another_matcher_or_a_server_with_other_knobs(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first.folder, copy)
    begun = json.loads((copy / "begun.json").read_text())
    begun["answering"]["matcher"] = "another"
    begun["answering"]["decoders"][4]["knobs"]["alpha"] = 3.0
    (copy / "begun.json").write_text(json.dumps(begun))
    with pytest.raises(DataError, match=r"made with other decoders, matcher than now.*--start-over"):
        quiet(SETTINGS, copy)
    assert lasting(copy) == lasting(first.folder)


def test_two_processes_do_not_write_one_run(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
            "time.sleep(60)",
            str(tmp_path / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.read(1)
        with pytest.raises(RunError, match="Another process is working"):
            quiet(SETTINGS, tmp_path)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sweep": {"alpha": (1.0, 2.0)}}, DataError, "validation split"),
        ({"methods": ("algo",)}, UnknownNameError, "Did you mean 'agla'"),
        ({"tasks": ("world_poppe",)}, UnknownNameError, "Did you mean 'world_pope'"),
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
    assert not (tmp_path / "run.json").exists()


def test_answers_that_were_cut_make_a_run_void_unless_allowed(tmp_path):
    short = replace(SETTINGS, tasks=("world_chair",), methods=("vote",), controls=False, max_new_tokens=3)
    saved = quiet(short, tmp_path)
    assert saved.run["status"] == "void"
    assert "cut at the limit of 3 tokens" in saved.run["void"][0]
    allowed = quiet(short, tmp_path, allowed=Allowed(truncated=1.0))
    assert allowed.run["status"] == "complete"
    assert any(flag.startswith("--allow-truncated") for flag in allowed.run["flags"])


def test_a_sweep_asks_every_point_on_the_validation_split(tmp_path):
    sweep = {"alpha": (0.5, 2.0), "beta": (0.1, 0.5)}
    settings = replace(SETTINGS, split="val", sweep=sweep, methods=("agla",), tasks=("world_pope",), limit=2)
    saved = quiet(settings, tmp_path)
    points = saved.run["sweep"]["points"]
    assert [(p["knobs"]["alpha"], p["knobs"]["beta"]) for p in points] == [
        (0.5, 0.1),
        (0.5, 0.5),
        (2.0, 0.1),
        (2.0, 0.5),
    ]
    assert {task["split"] for task in saved.run["tasks"]} == {"val"}
    names = {row["method"] for row in saved.run["rows"]}
    assert {point["decoder"] for point in points} <= names


def test_the_validation_split_has_no_scene_of_the_test_split(first, tmp_path):
    val = quiet(replace(SETTINGS, split="val", methods=("vote",), controls=False), tmp_path)
    test_tasks = {task["name"]: task["digest"] for task in first.run["tasks"]}
    assert all(task["digest"] != test_tasks[task["name"]] for task in val.run["tasks"])


def test_a_full_disk_ends_a_run_with_what_it_has_and_the_same_command_goes_on(first, tmp_path):
    out = tmp_path / "run"
    (out / "answers").mkdir(parents=True)
    (out / "answers" / "vcd.jsonl").symlink_to("/dev/full")
    with pytest.raises(GuardError):
        quiet(SETTINGS, out)
    shutil.rmtree(out)
    (out / "answers").mkdir(parents=True)
    told = []

    def full(line):  # the disk fills up once the run has begun
        if line.startswith("Asking"):
            (out / "answers" / "vcd.jsonl").symlink_to("/dev/full")
        told.append(line)

    with pytest.raises(RunError, match="No space left on device"):
        run(SETTINGS, out, echo=full, bar=False, workers=1, report=False)
    assert (out / "answers" / "greedy.jsonl").stat().st_size > 0
    (out / "answers" / "vcd.jsonl").unlink()
    quiet(SETTINGS, out)
    assert lasting(out) == lasting(first.folder)


SCRIPT = """
import sys
from lvlm_guard.evals.infer.run import run
from lvlm_guard.evals.spec.settings import Settings
run(Settings(limit=2, captions=4, seeds=2, batch=8), sys.argv[1], workers=int(sys.argv[2]), bar=False, report=False)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_ten_random_moments_and_resumed_it_ends_with_the_same_files(first, tmp_path):
    rng = random.Random(0)
    killed = 0
    while killed < 10:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), str(1 + killed % 2)])
        # anywhere from before the model is loaded to scoring
        time.sleep(rng.uniform(2.0, 7.0))
        if process.poll() is not None:
            assert process.returncode == 0
            shutil.rmtree(tmp_path)  # it had finished: begin again
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lasting(tmp_path) == lasting(first.folder)
    assert read_run(tmp_path).run["status"] == "complete"
