"""Two processes under `accelerate launch` train what one does on the same batches, and write one report.

`accelerate launch --cpu --num_processes 2` starts one process only; two on CPUs are started with `--multi_gpu`, and
accelerate takes gloo where there is no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lvlm_guard.adapters import load_adapter
from lvlm_guard.embedded.captioned import Pictures

pytestmark = pytest.mark.slow


def launched(processes: int, out: Path, *arguments: str) -> str:
    """Run `lvlm-guard train` in one process or several; return what it said."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", "-m"]
    command += ["lvlm_guard", "train", *arguments, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def told(out: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the report, and the last step's entry of the curve."""
    report = json.loads((out / "report.json").read_text())
    entries = [json.loads(line) for line in (out / "training" / "curve.jsonl").read_text().splitlines()]
    (last,) = [entry for entry in entries if "loss" in entry]  # written once, by one process
    assert last["step"] == report["recipe"]["steps"]
    return report, last


def same(one: Path, two: Path) -> None:
    """Compare two adapters: sums are taken in another order, and nothing else differs."""
    weights = [load_file(place / "adapter_model.safetensors") for place in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[1].items():
        torch.testing.assert_close(weight, weights[0][name], rtol=0, atol=2e-4)


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_two_processes_train_a_ranker_on_the_groups_that_one_accumulates(
    written: Path, tmp_path: Path, trunk: str
) -> None:
    given = ["ranker", "--data", str(written / "ranks.jsonl"), "--epochs", "1", "--batch", "4", "--rate", "2e-3"]
    given += ["--trunk", trunk, "--width", "16", "--heads", "2", "--relations", "2", "--measure-every", "9"]
    said = launched(2, tmp_path / "two", *given)
    assert said.count("adapter  ") == 1
    launched(1, tmp_path / "one", *given, "--accumulate", "2")
    (one, first), (two, second) = told(tmp_path / "one"), told(tmp_path / "two")
    assert one["recipe"] == two["recipe"]  # as many epochs, so half as many steps of twice as many groups
    assert two["recipe"]["steps"] == 24 // 4 // 2
    assert second["norm"] == pytest.approx(first["norm"], rel=1e-2)
    same(tmp_path / "one", tmp_path / "two")
    assert load_adapter(tmp_path / "two").card.mae is not None


def test_two_processes_train_a_retriever_and_its_baselines_on_the_batches_of_one(written: Path, tmp_path: Path) -> None:
    given = ["dual-prompt", "--data", str(written / "captions.jsonl"), "--steps", "3", "--batch", "5", "--claims", "1"]
    given += ["--negclip", "--measure-every", "3", "--compare", "--test-pictures", "8", "--precision", "float32"]
    said = launched(2, tmp_path / "two", *given)
    assert said.count("adapter  ") == 1
    launched(1, tmp_path / "one", *given)
    (one, first), (two, second) = told(tmp_path / "one"), told(tmp_path / "two")
    assert {row["method"] for row in two["rows"]} >= {"dual-prompt", "clip", "coop", "maple"}
    assert one["recipe"] == two["recipe"]
    for name in ("loss", "contrastive", "hard_negative", "claims", "norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-3)
    for name in ("coop", "maple"):
        places = [tmp_path / run / "baselines" / name / "seed-0" for run in ("one", "two")]
        if (places[0] / "adapter_model.safetensors").exists():
            same(*places)
    load_adapter(tmp_path / "two").score([Pictures().load("captions/test/0")], ["a dog"])


def test_two_processes_learn_by_further_pictures_texts_and_modules_what_one_does(written: Path, tmp_path: Path) -> None:
    presets = ("proxies", "visualness", "disa", "ogen", "lapt")
    given = ["claims", *(word for name in presets for word in ("--preset", name)), "--weight", "0.5"]
    given += ["--data", str(written / "captions.jsonl"), "--steps", "3", "--batch", "5", "--measure-every", "3"]
    given += ["--precision", "float32", "--novel", "0"]
    for processes, out in ((2, "two"), (1, "one")):
        launched(processes, tmp_path / out, *given)
    for name in presets:
        curves = [
            (tmp_path / out / name / "training" / "curve.jsonl").read_text().splitlines() for out in ("one", "two")
        ]
        first, second = ([json.loads(line) for line in lines if '"loss"' in line][-1] for lines in curves)
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4), name
        assert second["norm"] == pytest.approx(first["norm"], rel=1e-2), name
