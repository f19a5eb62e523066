"""A training that was killed, stopped or that failed goes on from its last state, and ends as an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainings import DUAL, RANKER, recipe

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.recipe import last_checkpoint
from lvlm_guard.errors import GuardError

WEIGHTS = "adapter_model.safetensors"


def nothing(_: int) -> None:
    pass


class Dying:
    """Ends the run at a step, the way it is told."""

    def __init__(self, step: int, how: Callable[[], object]) -> None:
        self.left, self.how = step, how

    def __call__(self, done: int) -> None:
        self.left -= done
        if self.left == 0:
            self.how()


def told(folder: Path) -> list[dict[str, Any]]:
    """What was logged and measured, without how long it took."""
    lines = (folder / "training" / "curve.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def crash() -> None:
    raise RuntimeError("the machine went away")


@pytest.mark.slow
def test_a_retriever_whose_training_broke_off_ends_in_the_bytes_of_an_unbroken_one(
    caption_pictures: dual_prompt.Pictures, tmp_path: Path
) -> None:
    dual_prompt.fit(DUAL, caption_pictures, recipe(), tmp_path / "whole", nothing)
    with pytest.raises(RuntimeError, match="went away"):
        dual_prompt.fit(DUAL, caption_pictures, recipe(), tmp_path / "broken", Dying(5, crash))
    assert not (tmp_path / "broken" / WEIGHTS).exists()
    dual_prompt.fit(DUAL, caption_pictures, recipe(), tmp_path / "broken", nothing)
    whole, broken = (told(tmp_path / run) for run in ("whole", "broken"))
    assert [entry["step"] for entry in whole] == [3, 6, 6]
    assert whole == broken
    cards = [(tmp_path / run / "guard_dual_prompt.json").read_bytes() for run in ("whole", "broken")]
    assert cards[0] == cards[1]


@pytest.mark.slow
def test_ctrl_c_saves_the_step_in_progress_and_the_ranker_goes_on_from_there(
    ranked_pictures: ranker.Pictures, tmp_path: Path
) -> None:
    ranker.fit(RANKER, ranked_pictures, recipe(), tmp_path / "whole", nothing)
    stop = Dying(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ranker.fit(RANKER, ranked_pictures, recipe(save_every=100), tmp_path / "stopped", stop)
    counted: list[int] = []
    ranker.fit(RANKER, ranked_pictures, recipe(save_every=100), tmp_path / "stopped", counted.append)
    assert counted[0] == 3
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "stopped" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, signal, sys, torch
        from pathlib import Path
        from lvlm_guard.adapters.data import RankData
        from lvlm_guard.adapters.ranker.settings import RankerSettings
        from lvlm_guard.adapters.training import ranker
        from lvlm_guard.adapters.training.recipe import Recipe
        from lvlm_guard.adapters.data.read import world_facts
        from lvlm_guard.embedded.captioned import Pictures
        torch.set_num_threads(1)
        rows = [*world_facts("count", "train", 40).ranks.rows, *world_facts("count", "val", 60).ranks.rows]
        data = RankData(rows, Pictures(), "counts", exhaustive=sorted({row.object for row in rows})).teaching("skip")
        plan = ranker.Plan(settings=RankerSettings(width=16, heads=2, relations=2, prompts=2, fusion_layers=1))
        left = int(sys.argv[2])
        def advance(done):
            global left
            left -= done
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        recipe = Recipe(steps=6, batch=8, rate=5e-3, measure_every=3, save_every=2)
        ranker.fit(plan, ranker.Pictures.read(data, plan), recipe, Path(sys.argv[1]), advance)
    """)

    def run(folder: str, dies: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / folder), str(dies)], check=False
        ).returncode

    assert run("whole", -1) == 0
    assert run("killed", 5) == -signal.SIGKILL
    assert run("killed", -1) == 0
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "killed" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_finished_training_is_loaded_and_not_trained_again(ranked_pictures: ranker.Pictures, tmp_path: Path) -> None:
    ranker.fit(RANKER, ranked_pictures, recipe(steps=2), tmp_path, nothing)
    written = (tmp_path / WEIGHTS).stat().st_mtime_ns
    again = ranker.fit(RANKER, ranked_pictures, recipe(steps=2), tmp_path, nothing)
    assert (tmp_path / WEIGHTS).stat().st_mtime_ns == written
    assert again.card.mae is not None


@pytest.mark.slow
def test_a_folder_with_another_training_is_refused_by_what_differs(
    ranked_pictures: ranker.Pictures, tmp_path: Path
) -> None:
    ranker.fit(RANKER, ranked_pictures, recipe(steps=2), tmp_path, nothing)
    with pytest.raises(TrainingError, match=r"another training.*--start-over"):
        ranker.fit(RANKER, ranked_pictures, recipe(steps=2, seed=1), tmp_path, nothing)


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_state(
    ranked_pictures: ranker.Pictures, tmp_path: Path
) -> None:
    with pytest.raises(GuardError, match=r"(NaN|not finite|no number)"):
        ranker.fit(RANKER, ranked_pictures, recipe(rate=1e30, warm=0.0, save_every=1), tmp_path, nothing)
    assert (tmp_path / "training" / "begun.json").is_file()
    assert not (tmp_path / "guard_ranker.json").exists()


@pytest.mark.slow
def test_killed_between_an_early_stop_and_its_end_a_training_does_not_go_on_past_it(
    ranked_pictures: ranker.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = recipe(steps=12, measure_every=2, patience=1, rate=1e-9)  # nothing changes, so nothing gets better
    with monkeypatch.context() as patched:
        patched.setattr("lvlm_guard.adapters.training.recipe.finish", lambda *_: crash())
        with pytest.raises(RuntimeError, match="went away"):
            ranker.fit(RANKER, ranked_pictures, early, tmp_path, nothing)
    last = last_checkpoint(tmp_path / "training")
    assert last is not None
    step = int(last.name.partition("-")[2])
    assert step < 12
    done: list[int] = []
    ranker.fit(RANKER, ranked_pictures, early, tmp_path, done.append)
    assert done == [step]
    assert max(entry["step"] for entry in told(tmp_path)) == step


@pytest.mark.slow
def test_other_data_in_the_same_folder_is_refused(ranked_pictures: ranker.Pictures, tmp_path: Path) -> None:
    ranker.fit(RANKER, ranked_pictures, recipe(steps=2), tmp_path, nothing)
    data = ranked_pictures.train
    fewer = replace(ranked_pictures, train=data.with_rows(data.rows[:-1]))
    with pytest.raises(TrainingError, match=r"another training \(digest"):
        ranker.fit(RANKER, fewer, recipe(steps=2), tmp_path, nothing)
    begun = tmp_path / "training" / "training.json"
    begun.write_text(begun.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(TrainingError, match="processes 2, now 1"):
        ranker.fit(RANKER, ranked_pictures, recipe(steps=2), tmp_path, nothing)
