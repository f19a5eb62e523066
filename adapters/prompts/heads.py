"""What becomes of a tower's feature: adapters behind it, the frozen feature beside it, several features in one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters.prompts.producers import PRODUCERS
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.adapters.prompts.config import DualPromptConfig

OPTIONS = {
    "image": (0.0, 1.0), "text": (0.0, 1.0), "residual": (0.0, math.inf), "top": (1, math.inf), "guided": (0, 1),
    "classes": (0, 1),
}  # fmt: skip
"""Keys of `DualPromptConfig.head` and their bounds."""

ROUTING = 0.01
"""Temperature of the router, MoCoOp's, and of scores of classes."""


def check_head(options: dict[str, Any]) -> None:
    """Raise `KnobError` where the options of a head are unknown or out of bounds."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise KnobError(f"head has no option {name!r}: give {', '.join(OPTIONS)}.")
        low, high = OPTIONS[name]
        if not low <= value <= high:
            raise KnobError(f"head {name} is {value!r}: give {low} to {high}.")


def routed(scores: Tensor, top: int, tau: float = ROUTING) -> Tensor:
    """Return weights of experts: a softmax over the best `top` of scores [..., experts], 0 elsewhere.

    Source: MoCoOp (arXiv:2409.12011), P12.
    """
    best = scores.topk(top, -1)
    return torch.zeros_like(scores).scatter(-1, best.indices, (best.values / tau).softmax(-1))


class FeatureHead(nn.Module):
    """Changes the features of one side.

    - "image", "text" m: f <- (1 - m) f + m MLP(f), a bottleneck of a quarter: CLIP-Adapter (arXiv:2110.04544), P24.
    - "residual" w: f <- norm(f) + w norm(f0), f0 the frozen feature: HiCroPL (arXiv:2507.14976), P25.
    - "guided" 1: a picture's f <- norm(f) + gamma Attn(q, patches), q the mean frozen feature of what is asked about
      (`guide`, set before training), gamma 0 at the start: text-guided features (arXiv:2303.17169, arXiv:2308.11186),
      P8 [R]. Keys and values are the patches as CLIP's own projection gives them, keys through a learnt matrix.
    - "classes" 1: behind a picture's feature stand the scores of classes, one of each vision slot's output by one
      linear map for all, as cosines are that would give these logits: Prompt-CAM (arXiv:2501.09333), P19. A text has
      0 there; `Memory` reads them for claims.
    - experts E: the feature of the side that has them is those by each expert one behind the other, the other side's is
      its own as often, so that their cosine is the mean over experts: an ensemble of logits (MSGCoOp, P13). "top" k
      instead weighs a text's experts by the picture: w = softmax of its best k cosines with each expert's key (MoCoOp,
      P12). Where length is filled up so that it is the same for all, cosines are smaller by `gain`.
    """

    guide: Tensor

    def __init__(self, config: DualPromptConfig, side: str, d: int) -> None:
        super().__init__()
        told, on_vision = config.head, side == "vision"
        self.share: float = told.get("text" if side == "text" else "image", 0.0)
        self.residual: float = told.get("residual", 0.0)
        self.side, self.experts, self.slots = side, config.ensemble, config.vision_slots
        self.split = PRODUCERS[config.producer].each == side
        self.top: int = told.get("top", 0) if self.experts > 1 else 0
        self.guided = bool(told.get("guided")) and on_vision
        self.classes = config.n_ctx if told.get("classes") else 0
        if self.guided:
            self.gamma, self.key = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.eye(d))
            self.register_buffer("guide", torch.zeros(d))
        if self.classes and on_vision:
            self.score = nn.Linear(d, 1)
        if self.share:
            self.mlp = nn.Sequential(nn.Linear(d, max(1, d // 4)), nn.ReLU(), nn.Linear(max(1, d // 4), d))
        if self.top and on_vision:
            self.keys = nn.Parameter(normalize(torch.randn(self.experts, d), dim=-1))

    @property
    def gain(self) -> float:
        """What cosines are multiplied by."""
        return 1 / math.sqrt(self.experts if self.top else 1 + self.classes)

    def forward(self, f: Tensor, frozen: Callable[[], Tensor], tokens: Callable[[], Tensor] | None = None) -> Tensor:
        """Return features for those of the tower.

        Args:
            f: [batch, d], or of each expert [experts * batch, d].
            frozen: gives the normalised features of the untuned tower, [batch, d].
            tokens: gives a picture's tokens as features, the class token first and slots last, [batch, tokens, d].
        """
        dtype, f = f.dtype, f.float()
        seen = tokens().float() if tokens is not None and (self.guided or self.classes) else f
        if self.share:
            f = (1 - self.share) * f + self.share * self.mlp(f)
        if self.residual:
            f0 = normalize(frozen().float(), dim=-1)
            f = normalize(f, dim=-1) + self.residual * f0.repeat(len(f) // len(f0), 1)
        if self.guided:
            patches = normalize(seen[:, 1 : seen.shape[1] - self.slots], dim=-1)
            weights = (patches @ self.key @ self.guide * patches.shape[-1] ** 0.5).softmax(-1)
            f = normalize(f, dim=-1) + self.gamma * (weights[:, None] @ patches)[:, 0]
        if self.classes:
            f = self._scored(normalize(f, dim=-1), seen)
        if self.experts > 1:
            f = self._joined(normalize(f, dim=-1))
        return f.to(dtype)

    def _scored(self, f: Tensor, seen: Tensor) -> Tensor:
        if self.side == "text":
            return torch.cat([f, torch.zeros_like(f[:, :1]).expand(-1, 1 + self.classes)], 1)
        scores = (ROUTING * self.score(seen[:, -self.classes :])[..., 0]).tanh()
        rest = (self.classes - scores.square().sum(-1, keepdim=True)).clamp(min=1e-12).sqrt()
        return torch.cat([f, scores, rest], 1)

    def _joined(self, f: Tensor) -> Tensor:
        if self.split:
            scale = 1 / math.sqrt(self.experts)
            joined: Tensor = f.reshape(self.experts, -1, f.shape[-1]).transpose(0, 1).flatten(1) * scale
            return torch.cat([joined, torch.zeros_like(joined[:, :1])], 1) if self.top else joined
        if not self.top:
            return f.repeat(1, self.experts) / math.sqrt(self.experts)
        weights = routed(f @ normalize(self.keys, dim=-1).T, min(self.top, self.experts))
        # what is missing to length 1 stands in a place where texts have nothing
        rest = (1 - weights.square().sum(-1, keepdim=True)).clamp(min=1e-12).sqrt()
        return torch.cat([(weights[..., None] * f[:, None]).flatten(1), rest], 1)


def single(features: Tensor, experts: int, d: int) -> Tensor:
    """Return features [n, d] of joined ones, the mean of experts; [n, experts, d] are `parted`."""
    return features[:, :d] if experts == 1 else normalize(parted(features, experts, d).sum(1), dim=-1)


def parted(features: Tensor, experts: int, d: int) -> Tensor:
    """Return the normalised features by each expert, [n, experts, d], of joined ones."""
    return features[:, : experts * d].reshape(len(features), experts, d) * math.sqrt(experts)


class Wrapped(nn.Module, BaseTunerLayer):
    """A module of a CLIP's side with adapters around it; without an active one it is that module, bit for bit."""

    other_param_names = ("configs",)
    base_layer: Any
    tied: Any

    def __init__(self, base: nn.Module, side: str) -> None:
        super().__init__()
        self.base_layer, self.side = base, side
        self.configs: dict[str, DualPromptConfig] = {}

    @property
    def in_use(self) -> str | None:
        """The adapter in use; None where they are off or lie in other modules."""
        if self.disable_adapters or self.tied.off:
            return None
        return next((name for name in self.active_adapters if name in self.configs), None)


class HeadLayer(Wrapped):
    """Wraps a tower's projection, a Linear."""

    adapter_layer_names = ("dual_prompt_head",)

    def __init__(self, base: nn.Module, side: str) -> None:
        super().__init__(base, side)
        self.dual_prompt_head = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """Of the projection."""
        weight: Tensor = self.base_layer.weight
        return weight

    def add(self, name: str, config: DualPromptConfig) -> None:
        """Make room for an adapter."""
        head = FeatureHead(config, self.side, self.base_layer.out_features)
        self.dual_prompt_head[name] = head.to(self.weight.device)
        self.configs[name] = config

    @property
    def current(self) -> FeatureHead | None:
        """The head in use."""
        name = self.in_use
        return None if name is None else self.dual_prompt_head[name]  # type: ignore[return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the features of pooled states [batch, width]."""
        f: Tensor = self.base_layer(hidden)
        head = self.current
        if head is None:
            return f
        tokens = (lambda: self.base_layer(self.tied.tokens())) if self.side == "vision" else None
        made: Tensor = head(f, lambda: self.tied.frozen(self.side), tokens)
        return made
