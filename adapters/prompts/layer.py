"""An encoder layer with prompt slots in front of it: text slots right after BOS, vision slots at the end."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.utils.hooks import RemovableHandle

from lvlm_guard.adapters.prompts.config import DualPromptConfig
from lvlm_guard.adapters.prompts.heads import Wrapped
from lvlm_guard.adapters.prompts.producers import PRODUCERS, Prompts
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError

STD = 0.02  # of prompts that start at random; MaPLe's and PromptSRC's releases

NO_MERGE = (
    "Prompts are tokens of their own, no change of the weights, so they can't be merged into CLIP. Keep the adapter "
    "beside the model (`save_pretrained`), or take it off: `unload()`."
)


class _Running(threading.local):
    """Of each thread: how often adapters are off, what towers were called with and gave, and the forward's prompts."""

    def __init__(self) -> None:
        self.off = 0
        self.called: dict[tuple[int, str], tuple[Any, dict[str, Any]]] = {}
        self.tokens: dict[int, Tensor] = {}
        self.made: dict[tuple[int, str, str], Tensor] = {}


_RUNNING = _Running()


class Tied:
    """What the wrapped layers of one CLIP know of each other; `towers` are by side, with embeddings and pooling."""

    def __init__(self, towers: dict[str, Any]) -> None:
        self.towers = towers
        self.projections: dict[str, Any] = {}
        self.layers: dict[str, dict[int, PromptLayer]] = {"text": {}, "vision": {}}
        self.hooks: list[RemovableHandle] = []

    @property
    def off(self) -> bool:
        """Whether this thread runs the untuned CLIP."""
        return _RUNNING.off > 0

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Be the untuned CLIP in this thread, without gradients."""
        _RUNNING.off += 1
        try:
            with torch.no_grad():
                yield
        finally:
            _RUNNING.off -= 1

    @property
    def current(self) -> DualPromptConfig | None:
        """The configuration of the adapter in use."""
        return next((one.configs[name] for one in self._first() if (name := one.in_use) is not None), None)

    def frozen(self, side: str) -> Tensor:
        """Return the untuned CLIP's normalised features of what a side's running forward reads, [batch, d]."""
        args, kwargs = _RUNNING.called[id(self), side]
        projection = self.projections[side]
        with self.untuned():
            seen = self.towers[side](*args, **kwargs)
            return normalize(getattr(projection, "base_layer", projection)(seen.pooler_output).float(), dim=-1)

    def begin(self, side: str, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Note what a tower is called with; of a side with experts each input is read by each of them."""
        config = self.current
        if config is None:
            return None
        if config.head.get("residual") or config.producer in ("clusters", "conditioned"):
            _RUNNING.called[id(self), side] = args, kwargs
        if side != PRODUCERS[config.producer].each:
            return None

        def repeated(value: Any) -> Any:
            return value.repeat(config.experts, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value

        return tuple(map(repeated, args)), {name: repeated(value) for name, value in kwargs.items()}

    def end(self, module: Any, args: Any, output: Any) -> None:
        """Keep a picture's last tokens for a head that reads them."""
        config = self.current
        if config is not None and {"guided", "classes"} & set(config.head):
            _RUNNING.tokens[id(self)] = module.post_layernorm(output[0])

    def tokens(self) -> Tensor:
        """Return the tokens that the vision tower just gave, normalised, [batch, tokens, width]."""
        return _RUNNING.tokens.pop(id(self))

    def tables(self, name: str) -> Prompts:
        """Return the prompts that layers hold, [1, depth, n_ctx, width] of each side."""
        held = {
            side: [layer.prompts(name) for _, layer in sorted(layers.items()) if name in layer.configs]
            for side, layers in self.layers.items()
        }
        return {side: torch.stack(tables)[None] for side, tables in held.items() if tables}

    def producer(self, name: str) -> Any:
        """Return the module that makes an adapter's prompts."""
        return next(one.dual_prompt_made[name] for one in self._first() if name in one.dual_prompt_made)

    def _first(self) -> list[PromptLayer]:
        return [layers[0] for layers in self.layers.values() if 0 in layers]


class Approximate(nn.Module):
    """What attention would gather from n prompts, of low rank: softmax(q K^T) V with K = A B and V = A' B'.

    Source: APT (arXiv:2306.15706), P18; the form of the low rank is ours. Starts at 0.
    """

    def __init__(self, n: int, rank: int, width: int) -> None:
        super().__init__()
        self.key_in, self.key_out = (nn.Parameter(torch.randn(s) * STD) for s in ((n, rank), (rank, width)))
        self.value_in = nn.Parameter(torch.randn(n, rank) * STD)
        self.value_out = nn.Parameter(torch.zeros(rank, width))

    def forward(self, queries: Tensor) -> Tensor:
        """Return what is added to the attention's output for queries [batch, tokens, width]."""
        keys, values = self.key_in @ self.key_out, self.value_in @ self.value_out
        weights = (queries.to(keys.dtype) @ keys.T * keys.shape[-1] ** -0.5).softmax(-1)
        made: Tensor = (weights @ values).to(queries.dtype)
        return made


class PromptLayer(Wrapped):
    """Wraps one encoder layer, `index` within its encoder.

    The dictionaries are flat and keyed by adapter name, which is what PEFT saves and restores.
    """

    # ctx: a layer's prompts [n_ctx, width]; w, u and b: the coupling, F = w or w u with w [vision, text] or
    # [vision, rank], u [rank, text], b [vision]
    # made: the producer, on the first layer of a side alone; near: approximate attention
    adapter_layer_names = (
        "dual_prompt_ctx", "dual_prompt_w", "dual_prompt_u", "dual_prompt_b", "dual_prompt_made", "dual_prompt_near",
    )  # fmt: skip
    tied: Tied
    check: RemovableHandle  # of `require_slots`, on the first text layer alone

    def __init__(self, base: nn.Module, side: str, index: int) -> None:
        super().__init__(base, side)
        self.index = index
        self.dual_prompt_ctx, self.dual_prompt_w = nn.ParameterDict(), nn.ParameterDict()
        self.dual_prompt_u, self.dual_prompt_b = nn.ParameterDict(), nn.ParameterDict()
        self.dual_prompt_made, self.dual_prompt_near = nn.ModuleDict(), nn.ModuleDict()

    def add(self, name: str, config: DualPromptConfig, text_width: int, start: Tensor | None) -> None:
        """Make the tensors of an adapter; prompts begin at `start`, [n_ctx, width], or are drawn."""
        self.configs[name] = config
        weight, width = next(self.base_layer.parameters()), self.base_layer.embed_dim
        if config.attention == "approximate":
            self.dual_prompt_near[name] = Approximate(config.n_ctx, int(config.eta), width).to(weight.device)
            if not hasattr(self, "near"):
                self.near = self.base_layer.self_attn.register_forward_hook(self._gather, with_kwargs=True)
            return
        # training in half precision loses prompts' small steps; PEFT keeps other adapters in float32 too
        to: dict[str, Any] = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        residual, rank = config.prompt_mode == "residual", config.coupling_rank
        if self.side == "vision" and config.coupling == "t2v":
            scale = text_width**-0.5
            self.dual_prompt_w[name] = torch.randn(width, rank or text_width, **to) * (rank**-0.5 if rank else scale)
            if rank:
                self.dual_prompt_u[name] = torch.randn(rank, text_width, **to) * scale
            # zero text prompts would append zero vectors here, whose LayerNorm has an enormous gradient
            first = residual and self.index == 0
            self.dual_prompt_b[name] = torch.randn(width, **to) * STD if first else torch.zeros(width, **to)
        elif start is not None:
            self.dual_prompt_ctx[name] = start.to(**to)
        else:
            draw = torch.zeros if residual and not (self.side == "vision" and self.index == 0) else torch.randn
            self.dual_prompt_ctx[name] = draw(config.n_ctx, width, **to) * STD

    def _gather(self, attention: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        name = self.in_use
        if name is None or name not in self.dual_prompt_near:
            return output
        read = kwargs.get("hidden_states", args[0] if args else None)
        return (output[0] + self.dual_prompt_near[name](attention.q_proj(read)), *output[1:])

    def prompts(self, name: str) -> Tensor:
        """Return this layer's prompts of an adapter, [n_ctx, width]."""
        if name in self.dual_prompt_ctx:
            own: Tensor = self.dual_prompt_ctx[name]
            return own
        text: Tensor = self.tied.layers["text"][self.index].dual_prompt_ctx[name]
        if name in self.dual_prompt_u:
            text = linear(text, self.dual_prompt_u[name])
        return linear(text, self.dual_prompt_w[name], self.dual_prompt_b[name])

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
        name, ids = self.in_use, kwargs.get("input_ids", args[0] if args else None)
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
        name = self.in_use
        if name is not None and name not in self.dual_prompt_near:
            hidden_states = self._filled(hidden_states, name)
            mask = self._mask(hidden_states, self.configs[name]) if self.side == "vision" else None
            if mask is not None:
                args, kwargs = (), kwargs | {"attention_mask": mask}
        return self.base_layer(hidden_states, *args, **kwargs)

    def _mask(self, h: Tensor, config: DualPromptConfig) -> Tensor | None:
        """Return what is added to attention's logits in the vision encoder, [batch or 1, 1, tokens, tokens]."""
        n, tokens = config.slots, h.shape[1]
        if config.attention == "decoupled":  # 1 + eta multiplies attention between patches and prompts
            prompt = torch.arange(tokens, device=h.device) >= tokens - n
            return (prompt[:, None] ^ prompt[None]).to(h.dtype)[None, None] * math.log1p(config.eta)
        hidden = torch.zeros(1, tokens, tokens, dtype=torch.bool, device=h.device)
        if config.producer == "summaries":
            hidden[:, 0, 1:-n] = hidden[:, 1:-n, -n:] = True
        elif config.attention == "coordinated" and config.eta > 1:
            sets = int(config.eta)
            keys = normalize(h[:, -n:].detach().unflatten(1, (sets, -1)).mean(2)[:, 1:], dim=-1)
            seen = 1 + (normalize(h[:, 1:-n].detach(), dim=-1) @ keys.mT).argmax(-1)
            seen = torch.cat([torch.zeros_like(seen[:, :1]), seen], 1)
            of = torch.arange(sets, device=h.device).repeat_interleave(n // sets)
            hidden = hidden.repeat(len(h), 1, 1)
            hidden[:, :-n, -n:] = seen[..., None] != of
        else:
            return None
        return torch.zeros_like(hidden, dtype=h.dtype).masked_fill(hidden, -torch.inf)[:, None]

    def _made(self, name: str, h: Tensor) -> Tensor:
        """Return the prompts of each row of this layer's inputs, [batch, n_ctx, width]."""
        config = self.configs[name]
        if config.producer == "tables":
            return self.prompts(name).expand(len(h), -1, -1)
        producer = self.tied.producer(name)
        key = id(self.tied), name, self.side
        if self.index == 0:
            _RUNNING.made[key] = producer(self.tied.tables(name), lambda: self.tied.frozen(self.side))[self.side]
        groups = _RUNNING.made[key][:, self.index]
        if self.index == config.depth - 1:
            del _RUNNING.made[key]  # whose graph would be kept
        # slots of the layer before are no patches
        slots = config.vision_slots if self.side == "vision" and self.index else 0
        shift = producer.shift(self.side, h[:, 1 : h.shape[1] - slots])
        each: Tensor = groups.repeat_interleave(len(h) // len(groups), 0)
        return each if shift is None else each + shift

    def _filled(self, h: Tensor, name: str) -> Tensor:
        prompts = self._made(name, h).to(h.dtype)
        n, config = prompts.shape[1], self.configs[name]
        residual = config.prompt_mode == "residual"
        if self.side == "text":
            places = [1 + k for k in range(n + len(config.fixed)) if k not in config.fixed]
            slots = h[:, places] + prompts if residual else prompts
            return h.index_copy(1, torch.tensor(places, device=h.device), slots)
        if self.index == 0:
            return torch.cat([h, prompts], 1)
        return torch.cat([h[:, :-n], h[:, -n:] + prompts if residual else prompts], 1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise `UnsupportedCallError`: prompts can't be merged."""
        raise UnsupportedCallError(NO_MERGE)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's looks for a `weight`, which an encoder layer has not
        there = device or next(self.base_layer.parameters()).device
        for held in map(self.get_submodule, self.adapter_layer_names):
            if isinstance(held, nn.ModuleDict) and adapter_name in held:
                if not any(parameter.is_meta for parameter in held[adapter_name].parameters()):
                    held[adapter_name].to(there)
            elif isinstance(held, nn.ParameterDict) and adapter_name in held and not held[adapter_name].is_meta:
                held[adapter_name] = nn.Parameter(held[adapter_name].to(there), held[adapter_name].requires_grad)
