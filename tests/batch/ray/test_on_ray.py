"""The same data set on Ray Data and in this process; `make test-ray` has an environment with ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from data_sets import answers, as_lines, as_tar, rows

from lvlm_guard.batch.how import How
from lvlm_guard.batch.plan import plan_of
from lvlm_guard.batch.run import here, on_ray
from lvlm_guard.ranks import Place

ray = pytest.importorskip("ray")

HOW = How(max_new_tokens=20, batch=4)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster() -> Any:
    paths = os.pathsep.join(path for path in sys.path if path)
    ray.init(num_cpus=2, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


@pytest.mark.parametrize("write", [as_lines, as_tar])
def test_actors_give_the_same_rows_as_this_process(cluster: Any, tmp_path: Path, write: Any) -> None:
    data = write(tmp_path / "data", rows(40))
    mine, theirs = tmp_path / "process", tmp_path / "ray"
    list(here(plan_of([data], mine, HOW, 6), mine, Place(), "cpu", 1))
    plan = plan_of([data], theirs, HOW, 6)
    counts = list(on_ray(plan, theirs, 2, "cpu", 1))
    assert sorted(count for count, _ in counts) == [4, 6, 6, 6, 6, 6, 6]
    assert sum(errors for _, errors in counts) == 3
    for one, other in zip(answers(theirs), answers(mine), strict=True):
        assert one == other
    assert list(on_ray(plan, theirs, 2, "cpu", 1)) == []


def test_an_actor_that_is_killed_costs_no_row_and_doubles_none(cluster: Any, tmp_path: Path) -> None:
    data, out = as_lines(tmp_path / "data", rows(60)), tmp_path / "ray"
    plan = plan_of([data], out, HOW, 4)
    killed = False
    for _ in on_ray(plan, out, 2, "cpu", 1):
        if not killed:
            actors = [
                one
                for one in psutil.process_iter(["cmdline"])
                if "MapWorker(MapBatches(Actor))" in " ".join(one.info["cmdline"] or [])
            ]
            assert actors
            actors[0].kill()
            killed = True
    assert [row["index"] for row in answers(out)] == list(range(60))


def test_the_command_starts_a_cluster_of_its_own(tmp_path: Path) -> None:
    data, out = as_lines(tmp_path / "data", rows(10)), tmp_path / "out"
    options = ["--out", str(out), "--engine", "ray", "--workers", "2", "--max-new-tokens", "8", "--json"]
    command = [sys.executable, "-m", "lvlm_guard", "batch", str(data), *options]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    (told,) = json.loads(done.stdout)["rows"]
    assert (told["done"], told["errors"], told["finished"]) == (10, 3, True)
