"""What the LoRA adapts in each family: the language model and the projector, nothing of the image tower."""

import peft
import pytest
import tiny
import torch
from torch import nn

from lvlm_guard.adapters.distill.training import target_modules
from lvlm_guard.errors import UnsupportedModelError

LANGUAGE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
PROJECTOR = {
    "llava": {"linear_1", "linear_2"},
    "llava_next": {"linear_1", "linear_2"},
    "qwen2_5_vl": {"0", "2"},
    "instructblip": {"language_projection"},
}


def adapted(family, projector=True):
    model, _ = tiny.make(family, torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target_modules(model, projector)))
    return [name for name, module in wrapped.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_linear_layer_of_language_model_and_projector_is_adapted_and_no_other(family):
    names = adapted(family)
    language = [name for name in names if "language_model" in name]
    assert len(language) == 3 * len(LANGUAGE)  # three layers
    assert {name.rpartition(".")[2] for name in language} == LANGUAGE
    rest = [name for name in names if name not in language]
    assert {name.rpartition(".")[2] for name in rest} == PROJECTOR[family]
    assert len(rest) == len(PROJECTOR[family])
    assert not any("lm_head" in name or "qformer" in name or "vision_tower" in name for name in names)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_projector_can_be_left_alone(family):
    assert all("language_model" in name for name in adapted(family, projector=False))


def test_a_model_of_unknown_parts_is_refused_with_the_place_to_name_them():
    with pytest.raises(UnsupportedModelError, match=r"training\.py"):
        target_modules(nn.Sequential(nn.Linear(2, 2)), projector=True)
