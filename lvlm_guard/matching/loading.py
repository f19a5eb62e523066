"""From what a user names a matcher by to one matcher that the whole process shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from lvlm_guard.errors import KnobError, UnsupportedModelError, WeightsError
from lvlm_guard.files import read_json
from lvlm_guard.matching import REGISTRY
from lvlm_guard.matching.blip_reading import LARGE
from lvlm_guard.matching.combined import Combined, Foreign
from lvlm_guard.matching.match import Match, Matcher, device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Spec = str | PathLike[str] | Matcher | Callable[[list[Any], list[str]], Sequence[Match]] | None

_EMBEDDED = "embedded-"
_MARKS = {"guard_dual_prompt.json": "dual-prompt", "guard_ranker.json": "ranker", "config.json": "clip"}
"""The file by which a folder is known, and the registered matcher that reads it; a config must be a CLIP's."""

# fmt: off
_READ_BY = {
    "clip": "clip", "siglip": "siglip", "blip": "blip-itm",
    # of AutoModelForZeroShotObjectDetection those that `open-detector` reads
    **dict.fromkeys(["grounding-dino", "mm-grounding-dino", "owlv2", "owlvit"], "open-detector"),
    # of AutoModelForObjectDetection those that answer with `logits` and `pred_boxes`
    **dict.fromkeys(["conditional_detr", "d_fine", "deformable_detr", "deimv2", "detr", "lw_detr", "rf_detr", "rt_detr",
                     "rt_detr_v2", "table-transformer", "yolos"], "detector"),
}
# fmt: on
"""Model type -> the registered matcher that reads it."""

_lock = RLock()
_held: WeakKeyDictionary[Any, dict[tuple[Any, ...], Matcher]] = WeakKeyDictionary()
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
    if callable(spec) and not isinstance(spec, type):
        return Foreign(spec)
    if not isinstance(spec, str | PathLike | None):
        raise KnobError(
            f"matcher is {spec!r}: give a registered name ({', '.join(REGISTRY.names())}), a folder, a hub id, an "
            "instance of a subclass of lvlm_guard.matching.Matcher, or a callable (images, texts) -> list[Match]."
        )
    text = "blip-itm" if spec is None else str(spec)
    there = Path(text).exists()
    if "+" in text and not there:
        weighed = [part.rpartition("*")[::2] for part in text.split("+")]
        parts = [load_matcher(name, model=model, device=device, dtype=dtype) for _, name in weighed]
        return Combined(parts, [_number(w) for w, _ in weighed] if any(w for w, _ in weighed) else None)
    if "@" in text and not there:
        name, _, how = text.rpartition("@")
        plain = load_matcher(name, model=model, device=device, dtype=dtype)
        return _shared(plain, ("map", how), lambda: plain.mapped(how))
    if text in REGISTRY.names():  # a model that was moved has its matcher where it is now
        return _shared(REGISTRY if model is None else model, (text, device_of(model)), lambda: _registered(text, model))
    kind = held_in(text) or (_on_hub(text) if "/" in text and not there else None)
    if kind is None and Path(text).is_dir() and not any((Path(text) / mark).is_file() for mark in _MARKS):
        raise WeightsError(
            f"The folder {text!r} holds no matcher: one has {', '.join(_MARKS)} (of a BLIP or a CLIP). Give what "
            "`lvlm-guard train dual-prompt` or `train ranker` wrote; of several seeds each lies in a seed-N below."
        )
    if kind is None and not (isinstance(spec, PathLike) or "/" in text or Path(text).is_dir()):
        REGISTRY.where(text)  # says which names there are
    return shared(kind or "blip-itm", text, device_of(model) if device is None else device, dtype)


def shared(kind: str, place: str, device: torch.device, dtype: torch.dtype | None = None) -> Matcher:
    """Return the one matcher of a registered kind that a folder, a hub id or an "embedded..." stands for."""
    if place == "embedded":
        place = _embedded()
    if Path(place).is_dir():
        place = str(Path(place).resolve())  # which a CLIP's version holds: it must not tell where a process stands
    elif place == _EMBEDDED + kind:
        place = "embedded"
    how = {"dtype": dtype or torch.float32} if kind == "blip-itm" else {}
    key = kind, place, device, *how.values()
    return _shared(REGISTRY, key, lambda: REGISTRY.get(kind).from_pretrained(place, device=device, **how))


def _shared(owner: Any, key: tuple[Any, ...], load: Callable[[], Matcher]) -> Matcher:
    with _lock:
        held = _held.setdefault(owner, {})
        if key not in held:
            held[key] = load()
        return held[key]


def _registered(name: str, model: PreTrainedModel | None) -> Matcher:
    kind = REGISTRY.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Matcher)):
        raise UnsupportedModelError(
            f"The matcher {name!r} ({REGISTRY.where(name)}) is no subclass of lvlm_guard.matching.Matcher: the "
            "package that registers it must make it one."
        )
    return kind.load(model)


def _number(text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        raise KnobError(f"{text!r} is no weight of a matcher: write '2*blip-itm+1*clip'.") from None


def held_in(place: str) -> str | None:
    """Return the registered name of the matcher that a folder holds or an "embedded..." names; None of others.

    A weight before it and a map behind it are of a combination and of a CLIP: "2*FOLDER@saliency". Of several that are
    combined, "a+b", it is their names, "a+b", or None where one holds none.
    """
    if "+" in place and not Path(place).exists():
        kinds = [part if part in REGISTRY.names() else held_in(part) for part in place.split("+")]
        return None if None in kinds else "+".join(map(str, kinds))
    if ("*" in place or "@" in place) and not Path(place).exists():
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
    return _read_by(read_json(Path(place) / "config.json"))  # what reads it as a BLIP says what is amiss


def _on_hub(place: str) -> str | None:
    """Return the registered name of the matcher that a hub id holds; None where that can't be had."""
    from transformers.utils.hub import cached_file

    quiet = ("missing_entries", "gated_repo", "connection_errors")
    try:
        found = cached_file(place, "config.json", **{f"_raise_exceptions_for_{what}": False for what in quiet})
        return None if found is None else _read_by(read_json(Path(found)))
    except (OSError, ValueError):
        return None


def _read_by(config: Any) -> str | None:
    """Return the registered name of the matcher that reads a model by its config; None of others."""
    return _READ_BY.get(str(config.get("model_type"))) if isinstance(config, dict) else None


def default_source(model: PreTrainedModel | None) -> str:
    """Return the folder or hub id of the weights that `blip-itm` stands for, for this model."""
    return source_of("matcher", model, _embedded) or LARGE


def source_of(key: str, model: Any, embedded: Callable[[], str]) -> str | None:
    """Return the folder or hub id that a model's config names, `lvlm_guard: {key: ...}`, also as a folder beside it.

    None where it names none; of the embedded model, or a copy of it without that folder beside it, `embedded`.
    """
    told = getattr(getattr(model, "config", None), "lvlm_guard", None) or {}
    of_embedded = str(told.get("matcher", "")).startswith(".")
    if (named := told.get(key)) is not None:
        beside = Path(getattr(model, "name_or_path", "") or ".") / str(named)
        if beside.is_dir() or not (key == "matcher" and of_embedded):
            return str(beside if beside.is_dir() else named)
    return embedded() if of_embedded else None


def _embedded() -> str:
    return str(import_module("lvlm_guard.embedded").MATCHER)
