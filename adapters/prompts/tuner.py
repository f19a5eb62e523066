"""The tuner that PEFT drives: finds CLIP's encoder layers, wraps them, and ties vision prompts to text prompts."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

from lvlm_guard.adapters.prompts.config import NAME, DualPromptConfig
from lvlm_guard.adapters.prompts.heads import HeadLayer, Wrapped
from lvlm_guard.adapters.prompts.layer import NO_MERGE, PromptLayer, Tied
from lvlm_guard.adapters.prompts.producers import PRODUCERS
from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError

PREFIX = "dual_prompt_"
TOWERS = ("text_model", "vision_model")
PROJECTIONS = {"text_projection": "text", "visual_projection": "vision"}
ABOVE_LORA = "second time|Already found a `peft_config`"  # PEFT's warnings where a LoRA lies below on purpose


def register() -> None:
    """Make the tuner known to PEFT; does nothing the second time."""
    if PeftType[NAME] not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=DualPromptConfig, model_cls=DualPromptModel)


def layers_of(model: nn.Module, side: str) -> int:
    """Return how many encoder layers a CLIP has on a side, "text" or "vision": the most that `depth` may be."""
    return len(_encoder(model, side).layers)


def add_prompts(model: nn.Module, config: DualPromptConfig, name: str = "default") -> PeftModel:
    """Put prompts into a `CLIPModel`, or into the `PeftModel` of one with a LoRA, which stays as it is and trainable.

    A LoRA goes in first: PEFT does not look for targets inside the layers that prompts wrap. It is saved by its own
    model before the prompts are put in, or after they are taken off (`unload()`).

    Raises:
        UnsupportedModelError: the model is no CLIP.
        KnobError: it has fewer layers than `depth`.
    """
    clip = model.get_base_model() if isinstance(model, PeftModel) else model
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    beside = any(hasattr(module, "base_layer") for module in clip.modules())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*({ABOVE_LORA})")
        prompted = get_peft_model(clip, config, adapter_name=name)
    if beside:
        for parameter in trained:  # PEFT before 0.21 freezes what another tuner trains
            parameter.requires_grad_(True)
    return prompted


class DualPromptModel(BaseTuner):
    """PEFT's model class of the tuner: made by `get_peft_model` and `PeftModel.from_pretrained`, not by hand."""

    prefix = PREFIX
    tuner_layer_cls = Wrapped
    target_module_mapping = {}  # noqa: RUF012 - an instance variable of PEFT's, which has no defaults here

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # a tuner below (a LoRA) has left its configs on the model; PEFT would write ours into that one's dictionary
        below = vars(model).pop("peft_config", None)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        if below is not None:
            self.model.peft_config = below

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        for side in ("text", "vision"):
            if peft_config.sides in (side, "both") and peft_config.depth > (there := layers_of(model, side)):
                raise KnobError(
                    f"depth is {peft_config.depth}, but the {side} encoder of this CLIP has {there} layers: give "
                    f"{there} or less."
                )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        made: Any = target
        if target_name in PROJECTIONS:
            if not isinstance(target, HeadLayer):
                made = HeadLayer(target, PROJECTIONS[target_name])
            made.add(adapter_name, peft_config)
        else:
            tower, _, index = current_key.partition(".encoder.layers.")
            side = "text" if tower.endswith("text_model") else "vision"
            if not isinstance(target, PromptLayer):
                made = PromptLayer(target, side, int(index))
            self._fill(made, adapter_name, peft_config, self.model.get_submodule(tower).embeddings)
        if adapter_name not in self.active_adapters:
            made.requires_grad_(False)
        if made is not target:
            made.train(target.training)
            setattr(parent, target_name, made)

    def _fill(self, layer: PromptLayer, name: str, config: DualPromptConfig, embeddings: nn.Module) -> None:
        """Give a layer the tensors of an adapter, the first one what makes or checks prompts of all."""
        text = _encoder(self.model, "text", missing_ok=True)
        width, first = 0 if text is None else text.config.hidden_size, layer.index == 0
        on_text, start = layer.side == "text", None
        if on_text and first:
            if not hasattr(layer, "check"):
                layer.check = embeddings.register_forward_pre_hook(layer.require_slots, with_kwargs=True)
            if config.init == "words" and config.prompt_mode == "replace" and config.placeholder_ids:
                start = _embedded(embeddings, config)
        layer.add(name, config, width, start)
        if config.producer != "tables" and first and on_text == (text is not None and config.sides != "vision"):
            told: Any = self.model.config
            widths = {"text": width, "vision": told.vision_config.hidden_size, "joint": told.projection_dim}
            made = PRODUCERS[config.producer](config, widths)
            layer.dual_prompt_made[name] = made.to(next(layer.base_layer.parameters()).device)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the layers, then let each vision layer see the text layer of the same index."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        wrapped = [module for module in model.modules() if isinstance(module, Wrapped)]
        parts = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
        tied = next((one.tied for one in wrapped if hasattr(one, "tied") and one.tied.hooks), None)
        if tied is None:
            tied = Tied({tower[:-6]: parts[tower] for tower in TOWERS if tower in parts})
            for side, tower in tied.towers.items():
                tied.hooks.append(tower.register_forward_pre_hook(partial(tied.begin, side), with_kwargs=True))
                if side == "vision":
                    tied.hooks.append(tower.register_forward_hook(tied.end))
        tied.projections |= {side: parts[name] for name, side in PROJECTIONS.items() if name in parts}
        for one in wrapped:
            one.tied = tied
            if isinstance(one, PromptLayer):
                tied.layers[one.side][one.index] = one

    def _unload_and_optionally_merge(  # type: ignore[override]  # annotated None by PEFT, which returns the model too
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if merge:
            raise UnsupportedCallError(NO_MERGE)
        # ours alone: PEFT's would take the LoRA off too that lies beside
        for name, layer in [(n, m) for n, m in self.model.named_modules() if isinstance(m, Wrapped)]:
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.base_layer)
            own = [getattr(layer, held) for held in ("check", "near") if hasattr(layer, held)]
            for hook in (*layer.tied.hooks, *own):
                hook.remove()
        if vars(self.model).get("peft_config") is self.peft_config:
            del self.model.peft_config
        plain: nn.Module = self.model
        return plain

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raise `UnsupportedCallError`: prompts can't be merged."""
        raise UnsupportedCallError(NO_MERGE)

    unmerge_adapter = merge_adapter

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        # PEFT's takes the tensors of every tuner that it finds in the model, a LoRA's too
        ours = re.compile(rf"\.{PREFIX}\w+\.{re.escape(adapter_name)}(\.|$)")
        return {key: value for key, value in state_dict.items() if ours.search(key)}


def _encoder(model: nn.Module, side: str, missing_ok: bool = False) -> Any:
    found = next((module for name, module in model.named_modules() if name.endswith(f"{side}_model.encoder")), None)
    if found is not None or missing_ok:
        return found
    raise UnsupportedModelError(
        f"A {type(model).__name__} has no {side}_model.encoder.layers, so it has no place for {side} prompts. Give a "
        "CLIPModel of transformers, such as openai/clip-vit-base-patch32."
    )


def _embedded(embeddings: Any, config: Any) -> Tensor:
    """Return embedding + position of the placeholders that stand right after BOS and are overwritten, [n, width]."""
    ids = config.placeholder_ids
    with torch.no_grad():
        at = embeddings.token_embedding.weight.device
        words = embeddings.token_embedding.weight[torch.tensor(ids, device=at)]
        start: Tensor = words + embeddings.position_embedding.weight[1 : 1 + len(ids)]
    return start[[k for k in range(len(ids)) if k not in config.fixed][config.boosted :]]
