"""Random models of real proportions: the shares are LLaVA-1.5's, and as many steps are undecided as were asked for."""

import json

import pytest
import torch

from lvlm_guard.bench.shapes import SHAPES, UNDECIDED, random_matcher, random_pair, shape_of
from lvlm_guard.cli import main
from lvlm_guard.engine.assembly import plausible
from lvlm_guard.errors import KnobError


def weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_shares_are_those_of_llava_and_its_matcher():
    with torch.device("meta"):
        model, matcher = random_pair(SHAPES["1b"])[0], random_matcher
    language = weights(model.model.language_model) + weights(model.lm_head)
    assert language == pytest.approx(1.05e9, rel=0.05)
    assert weights(model.model.vision_tower) / language == pytest.approx(0.045, rel=0.1)
    assert model.config.image_seq_length == 576
    assert callable(matcher)


@pytest.mark.slow
def test_the_matcher_has_its_share():
    assert weights(random_matcher(SHAPES["1b"]).model) / 1.05e9 == pytest.approx(0.066, rel=0.15)


def test_the_head_leaves_as_many_steps_undecided_as_the_embedded_model():
    torch.manual_seed(0)
    shape = SHAPES["1b"]
    model = random_pair(SHAPES["tiny"])[0]
    states = torch.nn.functional.rms_norm(torch.randn(4000, model.config.text_config.hidden_size), (64,))
    undecided = plausible(model.lm_head(states), 0.5).sum(-1) > 1
    assert float(undecided.float().mean()) == pytest.approx(UNDECIDED, abs=0.04)
    assert shape.vocabulary > 32000


def test_a_shape_is_measured_as_a_model_is(capsys):
    arguments = ["bench", "--shape", "tiny", "--methods", "focus,vote", "--executions", "auto", "--batches", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--blocks", "1", "--max-new-tokens", "4", "--json"])
    assert ended.value.code in (0, None)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["method"] for row in rows} == {"greedy", "focus", "vote"}
    assert {row["model"] for row in rows} == {"tiny"}


def test_an_unknown_shape_is_named():
    with pytest.raises(KnobError, match="1b, tiny"):
        shape_of("7b")
