"""Which models need no trial: the table of proven model types, and the proofs kept on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]

from lvlm_guard.errors import KnobError
from lvlm_guard.families.family import Family, pair_name
from lvlm_guard.files import caches, whole
from lvlm_guard.proving import trial
from lvlm_guard.proving.proof import UNPROVEN, Proof

Check = Literal["always", "unknown", "never"]


def table() -> dict[str, dict[str, Any]]:
    """Return what was proven of tiny models of each model type, and why others are refused; a command wrote it."""
    found: dict[str, dict[str, Any]] = json.loads((files(__package__) / "proven.json").read_text())
    return found


def proven(family: Family, model: Any, processor: Any, check: Check) -> Family:
    """Return a family with its proof.

    Args:
        family: of the model and its processor.
        model: plain or guarded.
        processor: the one that belongs to it.
        check: "always" proves this very model anew; "unknown" only where neither the table nor a kept proof knows it;
            "never" trusts it.

    Raises:
        UnsupportedModelError: it can't be guarded; says what was found.
        KnobError: check is none of the three.
    """
    if check not in get_args(Check):
        raise KnobError(f"check is {check!r}: give 'always', 'unknown' or 'never'.")
    kernel = getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)
    name, kind = pair_name(model, processor), family.model_type
    usual = name.endswith(PROCESSOR_MAPPING_NAMES.get(kind) or "") and kernel in ("eager", "sdpa")
    known = Proof(**table()[kind]["proof"]) if usual and "proof" in table().get(kind, {}) else None
    if check == "never":
        return replace(family, proof=known or UNPROVEN)
    about = (name, model.config.to_json_string(), model.dtype, kernel, model.device.type, transformers.__version__,
             torch.__version__)  # fmt: skip
    digest = hashlib.blake2b("\n".join(map(str, about)).encode(), digest_size=16).hexdigest()
    place = Path(os.environ.get("LVLM_GUARD_CACHE") or caches()) / "lvlm-guard" / "proofs" / f"{digest}.json"
    if check == "unknown" and known is None:
        with suppress(OSError, ValueError, TypeError):  # none, or of another release
            known = Proof(**json.loads(place.read_text()))
    if check == "always" or known is None:
        known = trial.self_check(family, model, processor)
        with suppress(OSError), whole(place, shared=True) as part:
            part.write_text(json.dumps(asdict(known)))
    return replace(family, proof=known)
