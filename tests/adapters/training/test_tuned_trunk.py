"""`lvlm-guard train ranker --trunk tuned`: a LoRA learns in both towers, by the command, killed or not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lvlm_guard.adapters.data import open_facts
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.training import ranker
from lvlm_guard.adapters.training.recipe import Recipe, last_checkpoint
from lvlm_guard.embedded.captioned import Pictures

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
LOADS = """
import sys, torch
from lvlm_guard.adapters import load_adapter
from lvlm_guard.embedded.captioned import Pictures
torch.set_num_threads(1)
images = [Pictures().load(f"brightness/test/{k}") for k in range(5)]
torch.save(tuple(load_adapter(sys.argv[1]).rank(images, sys.argv[2])), sys.argv[3])
"""


def command(data: Path, out: Path, steps: int) -> list[str]:
    given = [
        "--data",
        str(data / "ranks.jsonl"),
        "--out",
        str(out),
        "--trunk",
        "tuned",
        "--rank",
        "2",
        "--device",
        "cpu",
    ]
    given += [
        "--steps",
        str(steps),
        "--batch",
        "6",
        "--rate",
        "5e-3",
        "--measure-every",
        str(steps),
        "--save-every",
        "2",
    ]
    given += ["--width", "16", "--heads", "2", "--relations", "2"]
    return [sys.executable, "-m", "lvlm_guard", "train", "ranker", *given]


def test_a_tuned_trunk_is_trained_loaded_in_a_new_process_and_resumed_to_the_same_bytes(
    written: Path, tmp_path: Path
) -> None:
    steps = 60
    subprocess.run(command(written, tmp_path / "whole", steps), check=True, capture_output=True)
    learnt = load_file(tmp_path / "whole" / WEIGHTS)
    towers = {name: weight for name, weight in learnt.items() if "lora_B" in name}
    assert {name.split("clip.")[1].split(".")[0] for name in towers} == {"vision_model", "text_model"}
    seen = [name for name, weight in towers.items() if bool(weight.any())]  # B begins at zero
    assert seen == list(towers)

    killed = subprocess.Popen(command(written, tmp_path / "killed", steps), stdout=-3, stderr=-3)
    state = tmp_path / "killed" / "training"
    while last_checkpoint(state) is None:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    last = last_checkpoint(state)
    assert last is not None
    assert 0 < int(last.name.partition("-")[2]) < steps
    subprocess.run(command(written, tmp_path / "killed", steps), check=True, capture_output=True)
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()

    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    plan = ranker.Plan(**report["plan"] | {"settings": RankerSettings(**report["plan"]["settings"])})
    pictures = ranker.Pictures.read(open_facts(written / "ranks.jsonl").ranks, plan)
    own = ranker.fit(plan, pictures, Recipe(**report["recipe"]), tmp_path / "own", lambda _: None, device="cpu")
    images = [Pictures().load(f"brightness/test/{k}") for k in range(5)]
    scores, logits = own.rank(images, own.card.asked("image"))
    asked = [sys.executable, "-c", LOADS, str(tmp_path / "whole"), own.card.asked("image"), str(tmp_path / "said.pt")]
    subprocess.run(asked, check=True, capture_output=True)
    loaded = torch.load(tmp_path / "said.pt", weights_only=True)
    assert torch.equal(loaded[0], scores)
    assert torch.equal(loaded[1], logits)
    with own.model.disable_adapter():
        plain = own.image_tokens(images)
    assert not torch.allclose(plain, own.image_tokens(images), atol=1e-3)
