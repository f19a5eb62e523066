"""A retriever's folder: PEFT's own files, which hold all that was trained, what is remembered beside them, and
`guard_dual_prompt.json`, which says how it is used and that it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import EMBEDDED, Frame, Inputs, load_backbone, name_of, place_of
from lvlm_guard.adapters.errors import check
from lvlm_guard.adapters.loading import Card, is_tuned, pair, with_adapter, write_adapter
from lvlm_guard.adapters.retrieval.model import RetrievalModel, TooLong
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.testtime import recalled
from lvlm_guard.errors import KnobError, UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.adapters.prompts import DualPromptConfig

FILE = "guard_dual_prompt.json"
Weighting = Literal["none", "two-stage", "pairwise"]


@dataclass(frozen=True)
class RetrieverCard(Card):
    """What a retriever stands on and how it is used; raises `KnobError` for a value outside its range.

    Args:
        backbone: hub id or folder of the CLIP; "embedded" for the tiny one of this package.
        text_width, image_width: of its encoders.
        adapter: whether prompts (or another adapter of PEFT) lie in the folder; False for an untuned CLIP.
        strength: lambda of the word weights, at least 0; 0 leaves captions as they are.
        weighting: how `rank` uses them: "none"; "two-stage" ranks without and then ranks the best `top` again by
            weights made for each pair; "pairwise" weighs every pair. The cost is one text pass for each weighed pair.
        top: how many are ranked again.
        too_long: what becomes of captions beyond the encoder's length: "raise" or "truncate".
        calibration: (a, b), P(match) = sigmoid(a * S + b), fitted on validation; None: not calibrated.
        configuration: the name of what was trained, for the reader: a preset's, or a configuration of prompts.
        lacks: what of a published work is not exact here.
        frame: how pictures of any shape become the CLIP's square.
        temperature: of the softmax over a claim and its swaps, fitted on validation; None: the CLIP's own.
        templates: sentences of a claim about an object, instead of "a photo of a dog"; {article} and {object} in each.
        sentences: object -> sentences that stand for the claim about it, beside those.
    """

    file = FILE
    kind = "dual-prompt"
    format = 2  # 1 had been trained on the middle of each picture

    backbone: str
    text_width: int
    image_width: int
    adapter: bool = True
    strength: float = 0.0
    weighting: Weighting = "none"
    top: int = 50
    too_long: TooLong = "raise"
    calibration: tuple[float, float] | None = None
    configuration: str = ""
    lacks: str = ""
    frame: Frame = "squashed"
    temperature: float | None = None
    templates: tuple[str, ...] = ()
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise KnobError(f"strength is {self.strength!r}: give a finite number of at least 0; 0 is off.")
        known = {"weighting": Weighting, "too_long": TooLong, "frame": Frame}
        check(self, {"top": 1}, {name: get_args(choices) for name, choices in known.items()})
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise KnobError(f"temperature is {self.temperature}: give a finite number above 0, or None.")
        if self.calibration is not None and not all(map(isfinite, self.calibration)):
            raise KnobError(f"calibration is {self.calibration}: give two finite numbers, or None.")

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        said = {name: tuple(each) for name, each in told.get("sentences", {}).items()}
        more = {"templates": tuple(told.get("templates", ())), "sentences": said}
        return cls(**told | more | {"calibration": pair(told.get("calibration"))})


MEMORY = "guard_memory.safetensors"
"""What is remembered beside the adapter, where there is something."""

NEAR = 10
"""Objects that are told apart; FuDD's analysis takes so many, its main table all."""


class Memory(NamedTuple):
    """What is kept beside a CLIP to score claims by, without training; `names` are objects that it knows, none for all.

    - "cache": pictures with pseudo-labels (TFUP, arXiv:2404.16339); `keys`, `values`, `shares`, `text`, see `recalled`.
    - "pairs": what tells two objects apart (FuDD, arXiv:2311.07593): `sides` [names, names, d], what is said of the
      first as against the second, 0 where nothing is. Of a picture's best `NEAR` objects each is scored by the mean of
      its sides against the others; the rest keep their cosines.
    - "negatives": of each object features [names, k, d] of what it stands against (arXiv:2407.08966).
    - "gate": `pair` [2, d], what well-lit and dark pictures are like (CLIP-LIT, arXiv:2303.17569). Of a dark one
      all claims move to `undecided` [1], the cosine at which nothing is told.
    - "visualness": `null` [d], the feature of a picture of nothing (arXiv:2305.10434), and `line` [2], by which the
      cosine of a text with it tells that it is not visual. It changes no score.
    - "concepts": a learnt feature of each object, `text` [names, d] (ConES, arXiv:2305.18993).
    - "classes": nothing, since scores of objects stand behind a picture's feature (Prompt-CAM, see `FeatureHead`).
    - "views": nothing, since prompts are tuned on views of each picture (DiffTPT, arXiv:2308.06038), see `tuned`.
    """

    kind: str
    names: tuple[str, ...]
    tensors: dict[str, Tensor]

    def scored(self, image: Tensor, scores: Tensor, names: Sequence[str | None], tau: float) -> Tensor:
        """Return scores [n, m] with those of known claims changed: log-probabilities or log-odds times tau."""
        held = self.tensors
        if self.kind == "gate":
            lit = (image @ held["pair"].T / tau).softmax(-1)[:, :1]
            gated = held["undecided"] + lit * (scores - held["undecided"])
            return torch.where(torch.tensor([name is not None for name in names]), gated, scores)
        places = [(column, self.names.index(name)) for column, name in enumerate(names) if name in self.names]
        if not places:
            return scores
        columns, known = map(list, zip(*places, strict=True))
        if self.kind == "cache":
            p = recalled(image, (image @ held["text"].T / tau).softmax(-1), held)
            changed = tau * p.clamp(min=1e-12).log()[:, known]
        elif self.kind == "concepts":
            changed = image @ held["text"][known].T
        elif self.kind == "classes":
            changed = image[:, -len(self.names) - 1 : -1][:, known]
        elif self.kind == "pairs":
            changed = _told_apart(image, scores[:, columns], held["sides"][known][:, known])
        else:
            far = torch.einsum("nd,mkd->nmk", image, held["negatives"][known])
            changed = scores[:, columns] - tau * (far / tau).logsumexp(-1)
        return scores.index_copy(1, torch.tensor(columns, device=scores.device), changed)


def _told_apart(image: Tensor, scores: Tensor, sides: Tensor) -> Tensor:
    best = torch.zeros_like(scores).scatter(1, scores.topk(min(NEAR, scores.shape[1]), 1).indices, 1.0)
    said = torch.einsum("nb,abd->nad", best, sides)  # of b itself nothing is said
    new = torch.einsum("nd,nad->na", image, normalize(said, dim=-1))
    return torch.where((best > 0) & (said.square().sum(-1) > 0), new, scores)


def make(clip: Any, inputs: Inputs, *, config: DualPromptConfig | None = None, **card: Any) -> DualPromptRetriever:
    """Return a retriever that is ready to train, or the untuned baseline; raises `UnsupportedModelError` for no CLIP.

    Args:
        clip: a `CLIPModel`; frozen here, and prompts are put into it. Or the `PeftModel` of one with a LoRA alone.
        config: the prompts to put in; None for none.
        card: further fields of `RetrieverCard`, whose errors it raises.
    """
    base: Any = clip.get_base_model() if is_tuned(clip) else clip.requires_grad_(False)
    _require_clip(base)
    widths = base.config.text_config.hidden_size, base.config.vision_config.hidden_size
    made = RetrieverCard(name_of(base), *widths, **{"adapter": config is not None or is_tuned(clip)} | card)
    if config is not None:
        if is_tuned(clip):
            raise KnobError(
                "A retriever's folder holds one adapter, so prompts beside a LoRA would lose it when saved: merge the "
                "LoRA first (merge_and_unload), or use lvlm_guard.adapters.prompts.add_prompts and save both by hand."
            )
        from lvlm_guard.adapters.prompts import add_prompts

        clip = add_prompts(clip, config)
    return DualPromptRetriever(RetrievalModel(clip), made, inputs)


def untuned(source: str | os.PathLike[str] = EMBEDDED, **card: Any) -> DualPromptRetriever:
    """Return a CLIP as it is, as a retriever: what every tuned one is measured against; errors as of `parts`."""
    return make(*parts(source), **card)


def parts(source: str | os.PathLike[str] = EMBEDDED) -> tuple[Any, Inputs]:
    """Return a `CLIPModel` and its inputs: "embedded", a folder or a hub id; raises as `load_backbone`."""
    clip = load_backbone(source)
    return clip, Inputs.of(clip)


def save(retriever: DualPromptRetriever, folder: str | os.PathLike[str]) -> Path:
    """Write a retriever's files, the card last; return its path."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    clip, held = retriever.model.clip, retriever.memory
    if is_tuned(clip):
        write_adapter(clip, retriever.card.backbone, place)
    if held is not None:
        kept = {name: tensor.contiguous() for name, tensor in held.tensors.items()}
        save_file(kept, place / MEMORY, {"kind": held.kind, "names": json.dumps(held.names)})
    return replace(retriever.card, adapter=is_tuned(clip)).write(place)


def load(
    folder: str | os.PathLike[str],
    model: Any = None,
    inputs: Inputs | None = None,
    device: str | torch.device | None = None,
    trainable: bool = False,
) -> DualPromptRetriever:
    """Load a retriever from what `save` wrote.

    Args:
        model: the `CLIPModel`, into which the prompts are put, or its folder or hub id; None for the card's.
        inputs: of the CLIP; None for those that lie with it.
        device: where it runs; None is the CPU.
        trainable: whether training goes on.

    Raises:
        WeightsError: something can't be had, or the folder is damaged.
        UnsupportedModelError: the CLIP is of other widths than the one it was trained on.
    """
    place = Path(folder)
    card = RetrieverCard.read(place)
    source: Any = card.backbone if model is None else model
    clip = load_backbone(place_of(str(source))) if isinstance(source, str | os.PathLike) else source
    _require_clip(clip)
    widths = clip.config.vision_config.hidden_size, clip.config.text_config.hidden_size
    card.require(*widths, clip.name_or_path or "the model given")
    inputs = inputs or Inputs.of(clip)
    clip.requires_grad_(False)
    whole = RetrievalModel(with_adapter(clip, place, "retriever", trainable) if card.adapter else clip)
    made = DualPromptRetriever(whole.to(torch.device(device or "cpu")), card, inputs)
    if (place / MEMORY).is_file():
        with safe_open(place / MEMORY, "pt") as file:
            told = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        made.memory = Memory(told["kind"], tuple(json.loads(told["names"])), tensors)
    return made


def _require_clip(clip: Any) -> None:
    from transformers import CLIPModel

    if not isinstance(clip, CLIPModel):
        raise UnsupportedModelError(
            f"A {type(clip).__name__} is no CLIPModel of transformers, which retrieval stands on: give one, such as "
            "openai/clip-vit-base-patch32."
        )
