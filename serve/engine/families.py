"""The twins of vLLM's model classes, made when vLLM asks for them: `families:TwinLlavaForConditionalGeneration`.

A twin is its base with two branches, and the base's processor with two views; what is a family's own here is the
deepstack of Qwen3-VL, embeddings of a picture that are added behind the first layers of the decoder.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.families.family import Family
from lvlm_guard.serve.engine.branches import TwoBranches
from lvlm_guard.serve.engine.insides import MULTIMODAL_REGISTRY, ModelRegistry
from lvlm_guard.serve.engine.plugin import FAMILIES, twin_of
from lvlm_guard.serve.engine.views import TwoViews


class DeepBranches(TwoBranches):
    """A model whose picture embeddings stand [tokens, (1 + levels) H] wide, the levels to be added in its layers.

    vLLM keeps the levels of a step in buffers of the model; here each branch has its own.
    """

    deepstack_input_embeds: list[Tensor]
    deepstack_input_embeds_num_tokens: int
    visual_dim: int
    multiscale_dim: int

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._levels = [self.deepstack_input_embeds, [level.clone() for level in self.deepstack_input_embeds]]

    def _item_width(self) -> int:
        return self.visual_dim + self.multiscale_dim

    def _embedded(self, branch: int, *given: Any) -> Tensor:
        self.deepstack_input_embeds = self._levels[branch]
        made = super()._embedded(branch, *given)
        self._levels[branch] = self.deepstack_input_embeds  # others, where the step was longer than any before
        return made

    def _get_deepstack_input_embeds(self, num_tokens: int) -> Any:
        base: Any = super()
        halves = []
        for levels in self._levels:
            self.deepstack_input_embeds = levels
            halves.append(base._get_deepstack_input_embeds(num_tokens // 2))
        first, second = halves
        if first is None:
            return None
        return type(first)({name: torch.cat([first[name], second[name]]) for name in first.tensors})

    def _clear_deepstack_input_embeds(self, num_tokens: int) -> None:
        if self.deepstack_input_embeds_num_tokens:
            for levels in self._levels:
                for level in levels:
                    level[: num_tokens // 2].zero_()
            self.deepstack_input_embeds_num_tokens = 0


@cache
def _views(base: Any, model_type: str) -> Any:
    return type(f"{base.__name__}Views", (TwoViews, base), {"family": Family(model_type)})


@cache
def twin_class(architecture: str) -> type[Any]:
    """Return an architecture's twin, registered with its processor."""
    base = ModelRegistry.models[architecture].load_model_cls()
    plain = base._processor_factory

    def views(*given: Any, **named: Any) -> Any:
        made = plain.processor(*given, **named)  # a class, or LLaVA's choice between two
        kind: Any = type(made)
        made.__class__ = _views(kind, FAMILIES[architecture])
        return made

    branches = DeepBranches if hasattr(base, "_get_deepstack_input_embeds") else TwoBranches
    made = type(twin_of(architecture), (branches, base), {"__module__": __name__, "__doc__": "Two branches."})
    register = MULTIMODAL_REGISTRY.register_processor(views, info=plain.info, dummy_inputs=plain.dummy_inputs)
    found: type[Any] = register(made)
    return found


def __getattr__(name: str) -> type[Any]:
    for architecture in FAMILIES:
        if name == twin_of(architecture):
            return twin_class(architecture)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
