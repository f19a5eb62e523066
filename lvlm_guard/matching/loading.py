"""From what a user names a matcher by to one matcher that the whole process shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from lvlm_guard.errors import KnobError, UnsupportedModelError, WeightsError
from lvlm_guard.matching import REGISTRY
from lvlm_guard.matching.blip_weights import LARGE
from lvlm_guard.matching.combined import Combined
from lvlm_guard.matching.foreign import Foreign
from lvlm_guard.matching.match import Match, Matcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lvlm_guard.matching.blip_itm import BlipITM

Spec = str | PathLike[str] | Matcher | Callable[[list[Any], list[str]], Sequence[Match]] | None

_EMBEDDED = "embedded-"
_MARKS = {"guard_dual_prompt.json": "dual-prompt", "guard_ranker.json": "ranker", "config.json": "clip"}
"""The file by which a folder is known, and the registered matcher that reads it; a config must be a CLIP's."""

# fmt: off
DETECTORS = frozenset(
    ["conditional_detr", "d_fine", "deformable_detr", "deimv2", "detr", "lw_detr", "rf_detr", "rt_detr", "rt_detr_v2",
     "table-transformer", "yolos"]
)
# fmt: on
"""Model types of `AutoModelForObjectDetection` that answer with `logits` and `pred_boxes`."""

OPEN_DETECTORS = frozenset(["grounding-dino", "mm-grounding-dino", "owlv2", "owlvit"])
"""Model types of `AutoModelForZeroShotObjectDetection` that `open-detector` reads."""

_lock = RLock()
_held: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
"""What is shared, by whom it is for: a model, and goes with it, or the whole process (`REGISTRY`)."""


def load_matcher(
    spec: Spec = None,
    *,
    model: PreTrainedModel | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Matcher:
    """Return a matcher; the same one for the same weights, device and dtype in one process.

    Args:
        spec: a registered name ("blip-itm", "dual-prompt"), a folder or hub id of a BLIP image-text retrieval model,
            a CLIP, a SigLIP or a detector, a folder of an adapter, several with "+" between them ("detector+blip-itm"),
            weighted ones too ("2*blip-itm+1*clip"), a CLIP's other map behind an "@" ("clip@text", "clip@saliency"),
            "embedded" for the matcher in this package, "embedded-dual-prompt", "embedded-ranker" and "embedded-clip"
            for its adapters, a matcher, any callable `(images, texts) -> list[Match]`, or None for `blip-itm`.
        model: the model it will guard; decides the device where none is given, and for `blip-itm` the weights:
            those that the model's config names (`lvlm_guard: {"matcher": ...}`, a folder beside it or a hub id), else
            Salesforce/blip-itm-large-coco.
        device: of a matcher given by folder, hub id or "embedded..."; a registered one goes where the model is.
        dtype: of a BLIP given by folder or hub id; None is float32.

    Raises:
        UnknownNameError: no matcher has this name.
        WeightsError: the weights can't be had; the message says how to fetch them.
        UnsupportedModelError: what is there is no matcher.
        KnobError: `spec` is nothing that names a matcher.
    """
    if isinstance(spec, Matcher):
        return spec
    if spec is None:
        spec = "blip-itm"
    if callable(spec) and not isinstance(spec, type):
        return Foreign(spec)
    if not isinstance(spec, str | PathLike):
        raise KnobError(
            f"matcher is {spec!r}: give a registered name ({', '.join(REGISTRY.names())}), a folder, a hub id, an "
            "instance of a subclass of lvlm_guard.matching.Matcher, or a callable (images, texts) -> list[Match]."
        )
    text = str(spec)
    if len(several := _combined(text)) > 1:
        weighed = [part.rpartition("*")[::2] for part in several]
        parts = [load_matcher(name, model=model, device=device, dtype=dtype) for _, name in weighed]
        return Combined(parts, [_number(w) for w, _ in weighed] if any(w for w, _ in weighed) else None)
    if "@" in text and not Path(text).exists():
        name, _, how = text.rpartition("@")
        plain = load_matcher(name, model=model, device=device, dtype=dtype)
        other: Matcher = _shared(plain, ("map", how), lambda: plain.mapped(how))
        return other
    if text in REGISTRY.names():
        return _registered(text, model)
    where = device_of(model) if device is None else device
    if text == "embedded":
        return shared_blip(_embedded(), where, dtype)
    kind = held_in(text) or (_on_hub(text) if "/" in text and not Path(text).exists() else None)
    if kind is not None and kind != "blip-itm":
        return _shared_adapter(kind, text, where)
    if isinstance(spec, PathLike) or "/" in text or Path(text).is_dir():
        if Path(text).is_dir() and not any((Path(text) / mark).is_file() for mark in _MARKS):
            raise WeightsError(
                f"The folder {text!r} holds no matcher: one has {', '.join(_MARKS)} (of a BLIP or a CLIP). Give what "
                "`lvlm-guard train dual-prompt` or `train ranker` wrote; of several seeds each lies in a seed-N below."
            )
        return shared_blip(text, where, dtype)
    REGISTRY.where(text)  # says which names there are
    raise AssertionError("unreachable")


def _number(text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        raise KnobError(f"{text!r} is no weight of a matcher: write '2*blip-itm+1*clip'.") from None


def _combined(text: str) -> list[str]:
    """Return what a text combines, "a+b", or the text alone."""
    return [text] if Path(text).exists() else text.split("+")


def held_in(place: str) -> str | None:
    """Return the registered name of the matcher that a folder holds or an "embedded..." names; None of others.

    A weight before it and a map behind it are of a combination and of a CLIP: "2*FOLDER@saliency". Of several that are
    combined, "a+b", it is their names, "a+b", or None where one holds none.
    """
    if len(several := _combined(place)) > 1:
        kinds = [part if part in REGISTRY.names() else held_in(part) for part in several]
        return None if None in kinds else "+".join(map(str, kinds))
    if not Path(place).exists() and ("*" in place or "@" in place):
        place = place.rpartition("*")[2]
        place = place.rpartition("@")[0] or place
        return place if place in REGISTRY.names() else held_in(place)
    if place == "embedded":
        return "blip-itm"
    if place.startswith(_EMBEDDED) and place.removeprefix(_EMBEDDED) in _MARKS.values():
        return place.removeprefix(_EMBEDDED)
    for mark, name in _MARKS.items():
        if mark != "config.json" and (Path(place) / mark).is_file():
            return name
    try:
        config = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # what reads it as a BLIP says what is amiss
    return _read_by(config)


def _on_hub(place: str) -> str | None:
    """Return the registered name of the matcher that a hub id holds; None where that can't be had."""
    from transformers.utils.hub import cached_file

    quiet = ("missing_entries", "gated_repo", "connection_errors")
    try:
        found = cached_file(place, "config.json", **{f"_raise_exceptions_for_{what}": False for what in quiet})
        return None if found is None else _read_by(json.loads(Path(found).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _read_by(config: Any) -> str | None:
    """Return the registered name of the matcher that reads a model by its config; None of others."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind in OPEN_DETECTORS:
        return "open-detector"
    return "detector" if kind in DETECTORS else {"clip": "clip", "siglip": "siglip", "blip": "blip-itm"}.get(str(kind))


def _shared_adapter(name: str, text: str, device: torch.device) -> Matcher:
    source = str(Path(text).resolve()) if Path(text).is_dir() else "embedded" if text.startswith(_EMBEDDED) else text
    matcher: Matcher = _shared(
        REGISTRY, (name, source, device), lambda: REGISTRY.get(name).from_pretrained(source, device=device)
    )
    return matcher


def _registered(name: str, model: PreTrainedModel | None) -> Matcher:
    def load() -> Matcher:
        kind = REGISTRY.get(name)
        if not (isinstance(kind, type) and issubclass(kind, Matcher)):
            raise UnsupportedModelError(
                f"The matcher {name!r} ({REGISTRY.where(name)}) is no subclass of lvlm_guard.matching.Matcher: the "
                "package that registers it must make it one."
            )
        return kind.load(model)

    # a model that was moved has its matcher where it is now
    matcher: Matcher = _shared(REGISTRY if model is None else model, (name, device_of(model)), load)
    return matcher


def shared_blip(source: str, device: torch.device, dtype: torch.dtype | None = None) -> BlipITM:
    """Return the one BLIP matcher of this folder or hub id on this device."""
    from lvlm_guard.matching.blip_itm import BlipITM

    place = str(Path(source).resolve()) if Path(source).is_dir() else source
    key = ("blip-itm", place, device, dtype or torch.float32)
    matcher: BlipITM = _shared(REGISTRY, key, lambda: BlipITM.from_pretrained(source, device=device, dtype=dtype))
    return matcher


def _shared(owner: Any, key: tuple[Any, ...], load: Callable[[], Any]) -> Any:
    with _lock:
        held = _held.setdefault(owner, {})
        if key not in held:
            held[key] = load()
        return held[key]


def forget_matchers() -> None:
    """Drop every shared matcher, so that its memory is free once no guard holds it."""
    with _lock:
        _held.clear()


def device_of(model: PreTrainedModel | None) -> torch.device:
    """Return where the matcher of a model runs: where the model's first weights are, else the CPU."""
    device = torch.device("cpu") if model is None else torch.device(model.device)
    return torch.device("cpu") if device.type == "meta" else device  # weights that accelerate moves in when needed


def default_source(model: PreTrainedModel | None) -> str:
    """Return the folder or hub id of the weights that `blip-itm` stands for, for this model."""
    told = (getattr(getattr(model, "config", None), "lvlm_guard", None) or {}).get("matcher")
    if model is None or told is None:
        return LARGE
    beside = Path(model.name_or_path or ".") / told
    if beside.is_dir():
        return str(beside)
    # a copy of the embedded model, saved elsewhere, has no such folder beside it
    return _embedded() if told.startswith(".") else str(told)


def _embedded() -> str:
    return str(import_module("lvlm_guard.embedded").MATCHER)
