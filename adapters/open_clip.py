"""CLIPs of open_clip, by the extra `open-clip`, with the parts that a ranker asks of transformers' CLIPs.

They are named as open_clip names them, "hf-hub:laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup" (the
release's), or by a folder in its layout. Tokens of pictures and texts are those of the last blocks.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import Trunk
from lvlm_guard.errors import MissingExtraError
from lvlm_guard.weights import how_to_fetch, read

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"


def is_one(place: str) -> bool:
    """Return whether a place is of open_clip: a hub id that says so, or a folder in its layout alone."""
    folder = Path(place)
    return place.startswith(HUB) or ((folder / CONFIG).is_file() and not (folder / "config.json").is_file())


def load(place: str) -> OpenClip:
    """Return a CLIP with its tokenizer, in evaluation mode; raises `MissingExtraError` and `WeightsError`."""
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError(
            f"{place!r} is a CLIP of open_clip, which can't be imported ({error}). Install it: "
            "pip install 'lvlm-guard[open-clip]'."
        ) from error
    from transformers import AutoTokenizer

    bare = place.removeprefix(HUB)

    def loaded() -> OpenClip:
        model = open_clip.create_model(place if bare != place else FOLDER + place, require_pretrained=True)
        parts = AutoTokenizer.from_pretrained(bare), open_clip.get_model_preprocess_cfg(model)
        return OpenClip(model, place, *parts).eval()

    return read(f"The open_clip model {place!r}", bare, loaded, absent=how_to_fetch(bare, "--clip DIR"))


class OpenClip(nn.Module):
    """A CLIP of open_clip under the names that transformers gives the parts of one.

    `name` is where it was loaded from, `pixels` open_clip's "mean" and "std" of pixels in [0, 1].
    """

    def __init__(self, model: Any, name: str, tokenizer: Any, pixels: dict[str, Any]) -> None:
        from transformers import CLIPConfig

        super().__init__()
        self.model, self.name_or_path, self.tokenizer = model, name, tokenizer
        self.image_processor = SimpleNamespace(image_mean=pixels["mean"], image_std=pixels["std"])
        self.visual_projection = nn.Linear(1, 1, bias=False)  # never asked: PEFT needs a layer to adapt
        text, side = getattr(model, "text", model), model.visual.image_size
        sizes = {"hidden_size": len(text.ln_final.weight), "max_position_embeddings": text.context_length}
        seen = {"image_size": side if isinstance(side, int) else side[0]}
        self.config = CLIPConfig(text_config=sizes, vision_config=seen)
        self.trunk = OpenClipTrunk(self)

    @property
    def vision_model(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def text_model(self) -> Any:
        """The text tower's layers."""
        return getattr(self.model, "text", self.model).transformer

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """Return pictures' features, not normalised, under `pooler_output`."""
        return SimpleNamespace(pooler_output=self.model.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """Return texts' features, not normalised, under `pooler_output`."""
        return SimpleNamespace(pooler_output=self.model.encode_text(self.trunk.filled(input_ids, attention_mask)))


class OpenClipTrunk(Trunk):
    """Tokens of an `OpenClip`."""

    def __init__(self, clip: OpenClip) -> None:
        super().__init__(clip)
        with torch.no_grad():
            blank = self._seen(torch.zeros(1, 3, self.side, self.side, dtype=clip.dtype))
        self.image_width, self.step = blank.shape[1], self.side // blank.shape[2]

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = self._last(text=self.filled(input_ids, attention_mask))[:, : input_ids.shape[-1]]
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return states, kept.bool()

    def filled(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return ids filled up with 0 to all that the text tower reads, as open_clip's own tokenizer does."""
        ids = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, 0)
        return nn.functional.pad(ids, (0, self.context - ids.shape[-1]))

    def _seen(self, pixel_values: Tensor) -> Tensor:
        return self._last(image=pixel_values)

    def _last(self, **given: Tensor) -> Tensor:
        """Return what the last block makes of an `image`, [K, width, rows, columns], or a `text`, [N, T, width]."""
        side = next(iter(given))
        asked = {f"{side}_indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        found: Tensor = self.clip.model.forward_intermediates(**given, **asked)[f"{side}_intermediates"][-1]
        return found
