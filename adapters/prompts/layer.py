"""An encoder layer with prompt slots in front of it: text slots right after BOS, vision slots at the end."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from lvlm_guard.adapters.prompts.config import DualPromptConfig
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError

STD = 0.02  # of prompts that start at random; MaPLe's and PromptSRC's releases

NO_MERGE = (
    "Prompts are tokens of their own, no change of the weights, so they can't be merged into CLIP. Keep the adapter "
    "beside the model (`save_pretrained`), or take it off: `unload()`."
)


class PromptLayer(nn.Module, BaseTunerLayer):
    """Wraps one encoder layer; without an active adapter of its own it is that layer, bit for bit.

    The dictionaries are flat and keyed by adapter name, which is what PEFT saves and restores.

    Args:
        base: the encoder layer.
        side: "text" or "vision".
        index: of the layer within its encoder.
    """

    # ctx: a layer's prompts [n_ctx, width]; w, u and b: the coupling, F = w or w u with w [vision, text] or
    # [vision, rank], u [rank, text], b [vision]
    adapter_layer_names = ("dual_prompt_ctx", "dual_prompt_w", "dual_prompt_u", "dual_prompt_b")
    other_param_names = ("configs",)
    dual_prompt_ctx: nn.ParameterDict
    dual_prompt_w: nn.ParameterDict
    dual_prompt_u: nn.ParameterDict
    dual_prompt_b: nn.ParameterDict
    base_layer: Any
    text_layer: PromptLayer | None
    check: RemovableHandle  # of `require_slots`, on the first text layer alone

    def __init__(self, base: nn.Module, side: str, index: int) -> None:
        super().__init__()
        self.base_layer = base
        self.side = side
        self.index = index
        self.configs: dict[str, DualPromptConfig] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        # outside of torch's registry: this layer must not own the text layer's tensors
        object.__setattr__(self, "text_layer", None)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, name: str, config: DualPromptConfig, text_width: int, start: Tensor | None) -> None:
        """Make the tensors of an adapter.

        Args:
            name: of the adapter.
            config: its options.
            text_width: of the text encoder; read under coupling only.
            start: [n_ctx, width] for the text prompts of layer 0, or None to draw them.
        """
        weight, width = next(self.base_layer.parameters()), self.base_layer.embed_dim
        # training in half precision loses prompts' small steps; PEFT keeps other adapters in float32 too
        to: dict[str, Any] = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        zero = config.prompt_mode == "residual" and not (self.side == "vision" and self.index == 0)
        if self.side == "vision" and config.coupling == "t2v":
            scale = text_width**-0.5
            if config.coupling_rank:
                self.dual_prompt_w[name] = torch.randn(width, config.coupling_rank, **to) * config.coupling_rank**-0.5
                self.dual_prompt_u[name] = torch.randn(config.coupling_rank, text_width, **to) * scale
            else:
                self.dual_prompt_w[name] = torch.randn(width, text_width, **to) * scale
            # zero text prompts would append zero vectors here, whose LayerNorm has an enormous gradient
            first = config.prompt_mode == "residual" and self.index == 0
            self.dual_prompt_b[name] = torch.randn(width, **to) * STD if first else torch.zeros(width, **to)
        elif start is not None:
            self.dual_prompt_ctx[name] = start.to(**to)
        else:
            draw = torch.zeros if zero else torch.randn
            self.dual_prompt_ctx[name] = draw(config.n_ctx, width, **to) * STD
        self.configs[name] = config

    def prompts(self, name: str) -> Tensor:
        """Return this layer's prompts of an adapter, [n_ctx, width]."""
        if name in self.dual_prompt_ctx:
            own: Tensor = self.dual_prompt_ctx[name]
            return own
        assert self.text_layer is not None  # the tuner ties the two when it has wrapped them
        text: Tensor = self.text_layer.dual_prompt_ctx[name]
        if name in self.dual_prompt_u:
            text = linear(text, self.dual_prompt_u[name])
        return linear(text, self.dual_prompt_w[name], self.dual_prompt_b[name])

    @property
    def current(self) -> str | None:
        """The adapter whose prompts are put in; None where they are off or lie in other layers."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.configs), None)

    def set_adapter(self, adapter_names: str | list[str], *args: Any, **kwargs: Any) -> None:
        """Choose the adapter; raises `KnobError` for several at once, which would overwrite each other's slots."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        ours = [name for name in names if name in self.configs]
        if len(ours) > 1:
            raise KnobError(
                f"The prompts {', '.join(ours)} can't be active together: they share the same slots. Choose one: "
                f"set_adapter({ours[0]!r})."
            )
        super().set_adapter(names, *args, **kwargs)

    def require_slots(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `TextError` where captions come without the placeholders, before their words are overwritten."""
        name = self.current
        ids = kwargs.get("input_ids", args[0] if args else None)
        if name is None or ids is None:
            return
        expected = torch.tensor(self.configs[name].placeholder_ids, device=ids.device)
        found = ids[..., 1 : 1 + len(expected)]
        if found.shape[-1] != len(expected) or not bool((found == expected).all()):
            raise TextError(
                f"A caption has not the {len(expected)} placeholder tokens {expected.tolist()} after its first token, "
                "so the prompts would overwrite its words. Make inputs with DualPromptRetriever.text_inputs or "
                "lvlm_guard.adapters.retrieval.caption_inputs."
            )

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on hidden states [batch, tokens, width] with the slots filled."""
        name = self.current
        if name is not None:
            hidden_states = self._filled(hidden_states, name)
        return self.base_layer(hidden_states, *args, **kwargs)

    def _filled(self, h: Tensor, name: str) -> Tensor:
        prompts = self.prompts(name).to(h.dtype).expand(len(h), -1, -1)
        n, residual = prompts.shape[1], self.configs[name].prompt_mode == "residual"
        if self.side == "text":
            slots = h[:, 1 : 1 + n] + prompts if residual else prompts
            return torch.cat([h[:, :1], slots, h[:, 1 + n :]], 1)
        if self.index == 0:
            return torch.cat([h, prompts], 1)
        return torch.cat([h[:, :-n], h[:, -n:] + prompts if residual else prompts], 1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise `UnsupportedCallError`: prompts can't be merged."""
        raise UnsupportedCallError(NO_MERGE)

    def unmerge(self) -> None:
        """Raise `UnsupportedCallError`: nothing was merged."""
        raise UnsupportedCallError(NO_MERGE)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's looks for a `weight`, which an encoder layer has not
        there = device or next(self.base_layer.parameters()).device
        for dictionary in self.adapter_layer_names:
            held = getattr(self, dictionary)
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name] = nn.Parameter(held[adapter_name].to(there), held[adapter_name].requires_grad)
