"""A revision of a hub id is the one that answers: read from a hub cache with two of them, offline."""

import os
import subprocess
import sys

import pytest
import tiny
import torch

SCRIPT = """
import sys
from lvlm_guard.evals.lmms.model import LvlmGuard
from lvlm_guard.errors import GuardError
for revision in sys.argv[1:]:
    try:
        model = LvlmGuard.create_from_arg_string(f"pretrained=some/llava,method=greedy,device=cpu,revision={revision}")
        print(revision, model._asker.model.lm_head.weight.double().sum().item())
    except GuardError as error:
        print(revision, type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub cache as the hub's client leaves it, and the sum of each revision's last layer."""
    root = tmp_path_factory.mktemp("hub")
    place = root / "models--some--llava"
    (place / "refs").mkdir(parents=True)
    sums = {}
    for seed, (name, commit) in enumerate({"main": "a" * 40, "v2": "1234567" + "0" * 33}.items()):
        model, processor = tiny.make("llava", dtype=torch.float32, seed=seed)
        model.save_pretrained(place / "snapshots" / commit)
        processor.save_pretrained(place / "snapshots" / commit)
        (place / "refs" / name).write_text(commit)
        sums[name] = sums[commit] = model.lm_head.weight.double().sum().item()
    return root, sums


@pytest.mark.slow
def test_each_revision_is_loaded_by_name_and_by_commit(cache):
    root, sums = cache
    environment = {**os.environ, "HF_HUB_CACHE": str(root), "HF_HUB_OFFLINE": "1"}
    asked = [*sums, "v3"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *asked], env=environment, capture_output=True, text=True, timeout=120
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert {name: float(told[name]) for name in sums} == pytest.approx(sums), done.stderr[-2000:]
    assert sums["main"] != sums["v2"]
    assert told["v3"].startswith("WeightsError The model 'some/llava' could not be loaded")
