"""Where the prompts of a forward come from: the tables that layers hold, or what a module makes of them.

A producer is called once for a tower's forward. A new one is a class here, registered by `@producer(name)`; its tensors
are saved and restored by PEFT with the tables. Each starts as the tables alone, unless its docstring says otherwise.
Marked [R]: the formula is our reconstruction, since none was published or read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lvlm_guard.adapters.prompts.config import DualPromptConfig

Prompts = dict[str, Tensor]
"""Side ("text", "vision") -> [groups, depth, n_ctx, width]; of 1, of as many as there are experts, or of each row."""

Frozen = Callable[[], Tensor]
"""Gives the normalised features of the untuned CLIP for what a forward reads, [batch, d]."""

SMALL = 0.02
ANY, TEXT, VISION, BOTH = ("text", "vision", "both"), ("text", "both"), ("vision", "both"), ("both",)


class Producer(nn.Module):
    """Makes prompts of tables; this one takes them as they are.

    Args:
        config: of the adapter.
        widths: of the encoders by side; of "joint" the width of features.
    """

    sides: ClassVar[Sequence[str]] = ANY
    each: ClassVar[str | None] = None

    def __init__(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        super().__init__()
        self.config, self.widths = config, widths
        self.build(config, widths)

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        """Make what is learnt beside the tables."""

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        """Return the prompts of a forward, of the side that runs at least; `base` holds the tables, of one group."""
        return base

    def shift(self, side: str, patches: Tensor) -> Tensor | None:
        """Return what is added to a layer's prompts for its patches [batch, P, width], [batch, n_ctx, width]."""
        return None


PRODUCERS: dict[str, type[Producer]] = {"tables": Producer}


def producer(
    name: str, sides: Sequence[str] = ANY, each: str | None = None
) -> Callable[[type[Producer]], type[Producer]]:
    """Register a producer, so that `DualPromptConfig(producer=name)` knows it.

    Args:
        sides: what `DualPromptConfig.sides` may be; on others it has nothing to do.
        each: the side that has a feature by each expert.
    """

    def registered(made: type[Producer]) -> type[Producer]:
        PRODUCERS[name], made.sides, made.each = made, sides, each
        return made

    return registered


def _silent(made: nn.Linear) -> nn.Linear:
    """Return a map that gives 0 before it has learnt."""
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


@producer("recurrent", TEXT)
class Recurrent(Producer):
    """v + LSTM(v), a bidirectional LSTM over the prompts of a layer: PRE (arXiv:2309.07760), P6."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        half = widths["text"] // 2
        self.lstm = nn.LSTM(widths["text"], half, batch_first=True, bidirectional=True)
        self.out = _silent(nn.Linear(2 * half, widths["text"]))

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        v = base["text"][0]
        return base | {"text": (v + self.out(self.lstm(v)[0]))[None]}


@producer("joint", BOTH)
class Joint(Producer):
    """One self-attention over text and vision prompts of a layer side by side, shared by all layers: TuneVLSeg's
    shared attention (arXiv:2410.05239), P4, sizes [R]."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        both = widths["text"] + widths["vision"]
        self.norm = nn.LayerNorm(both)
        self.attention = nn.MultiheadAttention(both, 1, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        both = torch.cat([base["text"][0], base["vision"][0]], -1)
        read = self.norm(both)
        made = both + self.attention(read, read, read, need_weights=False)[0]
        text, vision = made.split([self.widths["text"], self.widths["vision"]], -1)
        return {"text": text[None], "vision": vision[None]}


@producer("mutual", BOTH)
class Mutual(Producer):
    """Text prompts lead vision prompts in the first half of the layers, and follow them in the second: HiCroPL
    (arXiv:2507.14976), P5. A layer's prompts are pooled to one proxy by attention; those of the layers up to it are
    what the other side's prompts attend to. Functional: the release writes mapped prompts into its parameters at each
    call, so that its mapper has no gradient and prompts drift."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        self.turn = max(1, config.depth // 2)
        text, vision = widths["text"], widths["vision"]
        self.query = nn.ParameterDict({s: torch.randn(widths[s]) * SMALL for s in ("text", "vision")})
        self.enter = nn.ModuleDict({"text": nn.Linear(vision, text), "vision": nn.Linear(text, vision)})
        self.attention = nn.ModuleDict({"text": _attention(text), "vision": _attention(vision)})

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        made = {side: list(tables[0]) for side, tables in base.items()}
        for layer in range(self.config.depth):
            leads, follows = ("text", "vision") if layer < self.turn else ("vision", "text")
            proxies = torch.stack([self._proxy(leads, table) for table in made[leads][: layer + 1]])
            read = self.enter[follows](proxies)[None]
            own = made[follows][layer][None]
            made[follows][layer] = (own + self.attention[follows](own, read, read, need_weights=False)[0])[0]
        return {side: torch.stack(tables)[None] for side, tables in made.items()}

    def _proxy(self, side: str, table: Tensor) -> Tensor:
        weights: Tensor = (table @ self.query[side] * table.shape[-1] ** -0.5).softmax(0)
        return weights @ table


@producer("style", VISION)
class Style(Producer):
    """Vision slots that follow the style of what a layer reads: mean and deviation of its patch tokens through a
    linear map: AD-CLIP's style (arXiv:2308.05659), which makes text prompts of it; on the vision side here, P11 [R]."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        self.read = _silent(nn.Linear(2 * widths["vision"], widths["vision"]))

    def shift(self, side: str, patches: Tensor) -> Tensor | None:
        if side != "vision":
            return None
        patches = patches.to(self.read.weight.dtype)
        made: Tensor = self.read(torch.cat([patches.mean(1), patches.std(1, correction=0)], -1))
        return made[:, None].expand(-1, self.config.n_ctx, -1)


@producer("clusters", VISION)
class Clusters(Producer):
    """Vision prompts of the nearest of some centres of frozen features, all starting from shared ones: DAM-VP
    (arXiv:2303.08138), P14 [R]. `centres` are set before training; without it all pictures belong to the first."""

    centres: Tensor

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        self.own = nn.Parameter(torch.zeros(config.experts, config.depth, config.n_ctx, widths["vision"]))
        self.register_buffer("centres", torch.zeros(config.experts, widths["joint"]))

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        nearest = torch.cdist(frozen().to(self.centres), self.centres).argmin(1)
        return base | {"vision": base["vision"] + self.own[nearest]}


@producer("cascade")
class Cascade(Producer):
    """Prompts of an earlier stage, which stay as they are, before those that are learnt: CasPL (arXiv:2409.17805), P22.
    Without that stage they are drawn at random."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        for side in ("text", "vision"):
            drawn = torch.randn(config.depth, config.boosted, widths[side]) * SMALL
            self.register_buffer(side, drawn if config.sides in (side, "both") else None)

    def boost(self, tables: Prompts) -> None:
        """Take the prompts of an earlier stage, [1, depth, boosted, width] of each side."""
        for side, table in tables.items():
            getattr(self, side).copy_(table[0].detach())

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        return {side: torch.cat([getattr(self, side)[None], table], 2) for side, table in base.items()}


@producer("experts", TEXT, each="text")
class Experts(Producer):
    """Several sets of text prompts around the shared ones: MoCoOp (arXiv:2409.12011) and MSGCoOp (arXiv:2507.21786),
    P12 and P13. A text has a feature by each, see `FeatureHead`."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        shape = (config.experts, config.depth, config.n_ctx, widths["text"])
        # equal experts would have equal gradients for ever
        self.own = nn.Parameter(torch.randn(shape) * SMALL * (config.experts > 1))

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        return base | {"text": base["text"] + self.own}


@producer("conditioned", TEXT, each="text")
class Conditioned(Producer):
    """Text prompts v + W2 relu(W1 [f ; t0]) of a text's own frozen feature t0 and a picture's f: class-aware prompts
    (arXiv:2303.17169), P7 [R]. A picture is its nearest centres, between which the router of `FeatureHead` weighs: a
    text is read once a centre, where the picture itself would ask for a reading a pair."""

    centres: Tensor

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        hidden = max(8, widths["joint"] // 16)
        self.read = nn.Linear(2 * widths["joint"], hidden)
        self.make = _silent(nn.Linear(hidden, widths["text"]))
        self.register_buffer("centres", torch.zeros(config.experts, widths["joint"]))

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        said = frozen().to(self.centres).expand(len(self.centres), -1, -1)
        seen = self.centres[:, None].expand(-1, said.shape[1], -1)
        moved = self.make(self.read(torch.cat([seen, said], -1)).relu()).flatten(0, 1)
        return base | {"text": base["text"] + moved[:, None, None]}


@producer("summaries", VISION, each="vision")
class Summaries(Producer):
    """Vision slots of an expert that hold what its queries gather from the patches, softmax(Q X^T) X, beside the
    prompts: MULTI-LANE's pathways (arXiv:2405.15633), P15 [R]. The class token reads the slots instead of the patches,
    which see no slot (`PromptLayer`); each pathway is a pass of its own, so that none tells another anything."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        shape = (config.experts, config.depth, config.n_ctx, widths["vision"])
        self.own = nn.Parameter(torch.randn(shape) * SMALL)
        self.query = nn.Parameter(torch.randn(config.experts, config.n_ctx, widths["vision"]))

    def forward(self, base: Prompts, frozen: Frozen) -> Prompts:
        return base | {"vision": base["vision"] + self.own}

    def shift(self, side: str, patches: Tensor) -> Tensor | None:
        if side != "vision":
            return None
        query = self.query.repeat_interleave(len(patches) // len(self.query), 0).to(patches.dtype)
        weights: Tensor = (query @ patches.mT * patches.shape[-1] ** -0.5).softmax(-1)
        return weights @ patches


@producer("gated")
class Gated(Producer):
    """The tables, and beside them what regulates their gradients where they are meta-learnt: GRAM (arXiv:2303.06571),
    L12 [R], see `terms.regulated`."""

    def build(self, config: DualPromptConfig, widths: dict[str, int]) -> None:
        sides = ("text", "vision") if config.sides == "both" else (config.sides,)
        self.gates = nn.ParameterDict({side: torch.zeros(widths[side], widths[side]) for side in sides})


def _attention(width: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(width, next(h for h in (8, 4, 2, 1) if width % h == 0), batch_first=True)


def k_means(features: Tensor, k: int, *, steps: int = 20, seed: int = 0) -> Tensor:
    """Return k centres of features [n, d], by Lloyd's algorithm from k of them drawn by a seed."""
    rng = torch.Generator().manual_seed(seed)
    centres = features[torch.randperm(len(features), generator=rng)[:k]].clone()
    for _ in range(steps):
        nearest = torch.cdist(features, centres).argmin(1)
        for place in nearest.unique():
            centres[place] = features[nearest == place].mean(0)
    return centres
