"""What BLIP reads: a checkpoint, with its layer, first token and version; and texts, cut at 35 pieces.

Texts are cleaned as BLIP was trained, by LAVIS' `BlipCaptionProcessor`, as AGLA's release (Lackel/AGLA at efa1263) uses
it. The release tokenises a second time without the limit and crashes on longer prompts; here one tokenisation serves
scores and map, and what was cut off is said in a note.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError, WeightsError
from lvlm_guard.weights import how_to_fetch, read

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval, PreTrainedTokenizerBase

LARGE = "Salesforce/blip-itm-large-coco"
"""AGLA's matcher."""

USE = "guard(model, processor, matcher='DIR')"

WORDS = 50  # kept of a text before it is tokenised
PIECES = 35  # kept of a text, the two specials included

_DROPPED = re.compile(r"[.!\"()*#:;~]")
_BLANKS = re.compile(r"\s{2,}")


def read_blip(
    source: str | PathLike[str], dtype: torch.dtype
) -> tuple[BlipForImageTextRetrieval, PreTrainedTokenizerBase, list[float], list[float], str]:
    """Read model, tokenizer, pixel mean and standard deviation, and a name, from a folder or hub id.

    Raises `WeightsError` where something can't be had, `UnsupportedModelError` where it is no such BLIP.
    """
    from transformers import AutoConfig, AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessor

    place, fetched = str(source), how_to_fetch(LARGE, USE)
    if isinstance(source, PathLike) and not Path(source).is_dir():
        raise WeightsError(f"There is no folder {place!r} with a matcher. {fetched}")

    def had(kind: Any, **how: Any) -> Any:
        damaged, absent = f"The folder is incomplete or damaged. {fetched}", how_to_fetch(place, USE)
        load = kind.from_pretrained
        return read(f"The matcher {place!r}", place, lambda: load(place, **how), damaged=damaged, absent=absent)

    config = had(AutoConfig)
    if config.model_type != "blip":
        raise UnsupportedModelError(
            f"{place!r} holds a model of the type {config.model_type!r}, but the matcher `blip-itm` needs a BLIP "
            f"image-text retrieval model, such as {LARGE}."
        )
    model, report = had(BlipForImageTextRetrieval, config=config, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise UnsupportedModelError(
            f"{place!r} is a BLIP without the weights {', '.join(sorted(report['missing_keys'])[:3])}, ...: a model "
            f"for captions or answers has no matching head, and random ones would match at random. Use {LARGE}."
        )
    tokenizer, pixels = had(AutoTokenizer), had(BlipImageProcessor)
    name = Path(place).resolve().name if Path(place).is_dir() else place
    return model, tokenizer, list(pixels.image_mean), list(pixels.image_std), name


def gradcam_layer(config: Any, layer: int | None = None) -> int:
    """Return the text layer for the map; raises as `BlipITM`.

    The last layer never: the ITM head reads position 0 alone, so the other tokens' attention there has no
    gradient and the map would be constant.
    """
    layers: int = config.text_config.num_hidden_layers
    if not config.text_config.is_decoder:
        raise UnsupportedModelError(
            "The matcher's text layers have no cross-attention (text_config.is_decoder is false), so no text token "
            "looks at the picture. Use a BLIP image-text retrieval model, such as Salesforce/blip-itm-large-coco."
        )
    if layers < 2:
        raise UnsupportedModelError(
            f"The matcher has {layers} text layer: its map would be constant, because the matching head reads nothing "
            "but the first position of the last layer. Use a model with two layers or more."
        )
    chosen = layer if layer is not None else (getattr(config, "lvlm_guard", None) or {}).get("gradcam_layer")
    if chosen is None:
        return min(layers // 2, layers - 2)
    if not (isinstance(chosen, int) and 0 <= chosen < layers - 1):
        raise KnobError(
            f"The layer for the map is {chosen!r}: give 0 to {layers - 2}. The last of the {layers} is no choice: the "
            "matching head reads its first position alone, so its map would be constant."
        )
    return chosen


def first_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Return the token in front of a text in the ITM pass.

    BLIP appends [DEC] and [ENC] to BERT's vocabulary; its published tokenizer lacks both.
    """
    found = tokenizer.get_vocab().get("[ENC]")
    return int((rows - 1 if len(tokenizer) < rows else tokenizer.cls_token_id or 0) if found is None else found)


def version_of(name: str, model: BlipForImageTextRetrieval, layer: int) -> str:
    """Return name, a digest of the weights that any training of a matcher changes, layer and dtype."""
    parts: Any = model
    heads = (parts.itm_head, parts.text_proj, parts.vision_proj, parts.text_encoder.encoder.layer[layer].crossattention)
    seen = hashlib.blake2b(digest_size=4)
    for weight in (weight for head in heads for weight in head.parameters()):
        seen.update(weight.detach().float().cpu().numpy().tobytes())
    return f"{name}@{seen.hexdigest()} layer {layer} {str(model.dtype).removeprefix('torch.')}"


def prepare(text: str) -> str:
    """Return the text as the matcher's training saw it: lower case, less punctuation, at most 50 words.

    `?`, `,`, `/` and `'` stay. Preparing twice changes nothing. Raises `TextError` where nothing is left.
    """
    words = _words(text)[:WORDS]
    if not words:
        raise TextError(
            f"The matching text {text!r} is empty once punctuation is dropped, so no pixel can matter to it. Ask a "
            "question, or state the matching text yourself: processor(..., guard_text='...')."
        )
    return " ".join(words)


def _words(text: str) -> list[str]:
    flat = _BLANKS.sub(" ", _DROPPED.sub(" ", text.lower())).strip("\n ")
    return flat.split(" ") if flat else []


@dataclass(frozen=True)
class MatchingText:
    """A text for the matcher: cleaned, its word pieces with the two specials around them, and what was cut off."""

    prepared: str
    ids: tuple[int, ...]
    note: str | None = None

    def __hash__(self) -> int:
        return hash(self.prepared)  # which a string remembers: claims are looked up at each step


def tokenise(text: str, tokenizer: PreTrainedTokenizerBase, pieces: int = PIECES) -> MatchingText:
    """Prepare and tokenise a text, cut to `pieces` with the specials; raises `TextError` where no content is left."""
    prepared, words, note = prepare(text), len(_words(text)), None
    whole: list[int] = tokenizer(prepared, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    ids = whole if len(whole) <= pieces else [*whole[: pieces - 1], whole[-1]]
    if len(ids) < 3:
        raise TextError(
            f"The matching text {text!r} holds no piece that the matcher's tokenizer knows. Put it in words, or state "
            "the matching text yourself: processor(..., guard_text='...')."
        )
    if words > WORDS:
        note = f"the matching text has {words} words; the matcher read {WORDS} at most, and {pieces} pieces at most"
    elif len(whole) > pieces:
        note = f"the matching text has {len(whole)} pieces; the matcher read the first {pieces}, specials included"
    return MatchingText(prepared, tuple(ids), note)
