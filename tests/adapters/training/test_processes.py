"""Two processes under `accelerate launch` train one adapter, each on batches of its own, and write one report.

`accelerate launch --cpu --num_processes 2` starts one process only; two on CPUs are started with `--multi_gpu`, and
accelerate takes gloo where there is no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lvlm_guard.adapters import load_adapter
from lvlm_guard.adapters.data import open_captions, open_ranks
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.checkpoint import learning
from lvlm_guard.adapters.training.ranking import RankingTask
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.task import Task
from lvlm_guard.adapters.world.pictures import Pictures

pytestmark = pytest.mark.slow

PROCESSES = 2


def launched(out: Path, *arguments: str) -> str:
    """Run `lvlm-guard train` in two processes; return what it said."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES)]
    command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "lvlm_guard", "train", *arguments, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def averaged(task: Task, recipe: Recipe) -> dict[str, float]:
    """Train in one process on the mean gradient of the batches of all; return the last step's loss and norm."""
    weights = list(learning(task.model).values())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.rate)
    losses: list[float] = []
    norm = torch.tensor(0.0)
    for step in range(recipe.steps):
        task.model.train()
        optimizer.zero_grad()
        losses.clear()
        for process in range(PROCESSES):
            number = step * PROCESSES + process
            torch.manual_seed(recipe.seed * 1_000_003 * PROCESSES + number)
            loss, _ = task.loss(task.model, task.batch(number))
            (loss / PROCESSES).backward()
            losses.append(float(loss.detach()))
        norm = torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimizer.step()
    return {"loss": losses[0], "norm": float(norm)}


def told(out: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the report, and the last step's entry of the curve."""
    report = json.loads((out / "report.json").read_text())
    entries = [json.loads(line) for line in (out / "training" / "curve.jsonl").read_text().splitlines()]
    (last,) = [entry for entry in entries if "loss" in entry]  # written once, by one process
    assert last["step"] == report["recipe"]["steps"]
    return report, last


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_two_processes_train_a_ranker_on_the_mean_of_their_batches(written: Path, tmp_path: Path, trunk: str) -> None:
    given = ["--data", str(written / "ranks.jsonl"), "--steps", "3", "--batch", "4", "--rate", "2e-3", "--trunk", trunk]
    given += ["--width", "16", "--heads", "2", "--relations", "2", "--measure-every", "3"]
    said = launched(tmp_path / "out", "ranker", *given)
    assert said.count("adapter  ") == 1
    report, last = told(tmp_path / "out")
    plan = ranker.Plan(**report["plan"] | {"settings": RankerSettings(**report["plan"]["settings"])})
    recipe = Recipe(**report["recipe"])
    pictures = ranker.Pictures.read(open_ranks(written / "ranks.jsonl"), plan)
    torch.manual_seed(recipe.seed)
    made = ranker.build(plan, pictures.train)
    task = RankingTask(made, pictures.train, pictures.lists, pictures.seen, recipe, plan.negatives)
    expected = averaged(task, recipe)
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert last["norm"] == pytest.approx(expected["norm"], rel=1e-2)
    made.save_pretrained(tmp_path / "one")
    one, two = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("one", "out"))
    assert one.keys() == two.keys()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], rtol=0, atol=2e-4)
    assert load_adapter(tmp_path / "out").card.mae is not None


def test_two_processes_train_a_retriever_and_its_baselines_and_one_of_them_reports(
    written: Path, tmp_path: Path
) -> None:
    given = ["--data", str(written / "captions.jsonl"), "--steps", "3", "--batch", "4", "--measure-every", "3"]
    said = launched(tmp_path / "out", "dual-prompt", *given, "--compare", "--test-pictures", "8")
    assert said.count("adapter  ") == 1
    report, last = told(tmp_path / "out")
    assert {row["method"] for row in report["rows"]} >= {"dual-prompt", "clip", "coop", "maple"}
    plan = dual_prompt.Plan(**report["plan"] | {"losses": LossStack(**report["plan"]["losses"])})
    recipe = Recipe(**report["recipe"])
    pictures = dual_prompt.Pictures.read(open_captions(written / "captions.jsonl"), plan.clip)
    torch.manual_seed(recipe.seed)
    made = dual_prompt.build(plan, pictures)
    losses = replace(plan.losses, tau=made.model.tau)
    task = RetrievalTask(
        made, pictures.train, pictures.gallery, pictures.pixels, losses, recipe, pictures.bank, pictures.frozen
    )
    expected = averaged(task, recipe)
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert last["norm"] == pytest.approx(expected["norm"], rel=1e-2)
    load_adapter(tmp_path / "out").score([Pictures().load("captions/test/0")], ["a dog"])
