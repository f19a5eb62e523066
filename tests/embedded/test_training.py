"""The training loop, its pieces, calibration and questions."""

import numpy as np
import pytest
import torch
from torch import nn

from embedded_training import __main__ as train
from embedded_training.blip import itm_text
from embedded_training.loop import Trainee, optimizer, schedule
from embedded_training.stored import cooccurrence
from lvlm_guard.embedded import world
from lvlm_guard.embedded.catalog import CLASSES, N_OBJECTS
from lvlm_guard.embedded.questions import MODES, ask


class Killed(Exception):
    pass


def run(folder, stages: dict[str, int], kill: tuple[str, int] | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    trainee = Trainee("tiny", list(stages), folder, np.random.default_rng(0))
    for stage, steps in stages.items():

        def step(i: int, stage: str = stage):
            if (stage, i) == kill:
                raise Killed
            x = torch.as_tensor(trainee.rng.normal(size=(8, 4)), dtype=torch.float32)
            loss = (net(x) - x.sum(-1, keepdim=True)).square().mean()
            return loss, {"loss": loss}

        opt = optimizer(list(net.parameters()), 1e-2)
        trainee.train(stage, {"net": net}, opt, step, steps=steps, rate=1e-2)
    return net.weight.detach().clone()


@pytest.mark.parametrize("kill", [("one", 130), ("two", 20), ("two", 249)])
def test_a_run_that_was_killed_ends_in_the_weights_of_one_that_was_not(tmp_path, kill) -> None:
    stages = {"one": 200, "two": 250}
    whole = run(tmp_path / "whole", stages)
    with pytest.raises(Killed):
        run(tmp_path / "cut", stages, kill)
    assert torch.equal(run(tmp_path / "cut", stages), whole)
    assert torch.equal(run(tmp_path / "cut", stages), whole)  # and a finished one stays as it is


def test_the_rate_warms_up_and_falls_to_two_percent() -> None:
    rates = [schedule(i, 1000, 1.0, 100) for i in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(rates[99], abs=0.03)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_vectors_do_not_decay_and_slow_parameters_learn_slower() -> None:
    fast, slow = nn.Linear(3, 3), nn.Linear(3, 3)
    opt = optimizer([*fast.parameters(), *slow.parameters()], 1.0, list(slow.parameters()), 0.1)
    found = {id(p): (g["weight_decay"], g["scale"]) for g in opt.param_groups for p in g["params"]}
    assert found[id(fast.weight)] == (0.02, 1.0)
    assert found[id(fast.bias)] == (0.0, 1.0)
    assert found[id(slow.weight)] == (0.02, 0.1)


@pytest.mark.parametrize("mode", MODES)
def test_pope_asks_about_three_objects_in_view_and_three_that_are_not(mode: str) -> None:
    drawn = world.scenes("train", 100)
    seen = [drawn.visible(i)[0] for i in range(100)]
    pairs, single = cooccurrence(seen)
    objects = next(o for o in seen if len(o) >= 3)
    asked = ask(np.random.default_rng(0), objects, mode, pairs, single)
    present, absent = [o for o, y in asked if y], [o for o, y in asked if not y]
    assert len(set(present)) == len(set(absent)) == 3
    assert set(present) <= set(objects)
    assert not set(absent) & set(objects)
    score = {"popular": single, "adversarial": pairs[objects].sum(0)}.get(mode)
    if score is not None:
        others = [o for o in range(N_OBJECTS) if o not in objects]
        assert sorted(score[absent]) == sorted(sorted(score[others])[-3:])


def test_a_matching_text_matches_exactly_when_all_its_nouns_are_in_view() -> None:
    rng = np.random.default_rng(0)
    objects, likely = [1, 5, 9], [2, 3]
    labels = []
    for _ in range(500):
        text, label, nouns = itm_text(rng, objects, likely)
        assert label == (set(nouns) <= set(objects))
        assert {word for word in text.split() if word in CLASSES} == {CLASSES[o] for o in nouns}
        labels.append(label)
    assert 0.4 < np.mean(labels) < 0.6
    assert itm_text(rng, [], likely)[1] == 0


@pytest.mark.slow
def test_training_runs_from_nothing_to_a_folder_and_learns(tmp_path, capsys) -> None:
    for model in ("llava", "blip"):
        train.train_one(model, seed=0, short=0.005, out=tmp_path)
        assert (tmp_path / model / "model.safetensors").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("llava main")]
    assert len(lines) == 1
