"""vLLM options that are refused before anything starts, each with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from lvlm_guard.serve.engine.refuse import CACHES, WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.passed import Passed

_OURS = "lvlm-guard serve sets it, since the guard depends on it: leave it out."
_DOOR = "it opens a way in that the front does not stand before: leave it out."
_CHECKED = "lvlm-guard serve asks vLLM over a socket of its own, which this shuts out: leave it out."

ALWAYS = {
    "model": "name the model once, by --model.",
    "model-tag": "name the model once, by --model.",
    "api-key": "the front can't see it there, and every user of this machine could (ps): set VLLM_API_KEY.",
    "middleware": "it could ask for guards or change what answers say: leave it out.",
    "logits-processors": "another processor of logits could undo the guard: leave it out.",
    "logprobs-mode": _OURS,
    "trust-request-mm-kwargs": _OURS,
    "no-trust-request-mm-kwargs": _OURS,
    "generation-config": _OURS,
    "headless": "an engine without a server has no front: leave it out.",
    "grpc": _DOOR,
    "grpc-port": _DOOR,
    **dict.fromkeys(
        (
            "data-parallel-multi-port-external-lb",
            "data-parallel-external-lb",
            "data-parallel-hybrid-lb",
            "data-parallel-rank",
            "data-parallel-start-rank",
            "data-parallel-size-local",
        ),
        "it is for servers that share engines, which are checked through one of them: start a whole server on each "
        "machine, and put your balancer before them.",
    ),
    "uds": _CHECKED,
    "ssl-cert-reqs": _CHECKED,
    "runner": "guards are for answers in text: leave it out.",
    "convert": "guards are for answers in text: leave it out.",
    "language-model-only": "without pictures there is nothing to guard: leave it out.",
    "skip-tokenizer-init": "vote finds names in what tokens spell: leave it out.",
    "speculative-config": WHY["speculative"],
    "spec-method": WHY["speculative"],
    "spec-model": WHY["speculative"],
    "spec-tokens": WHY["speculative"],
    "watermark-config": WHY["watermark"],
}
"""Options refused for every guard."""

TWIN = {
    "enable-lora": WHY["lora"],
    "lora-modules": WHY["lora"],
    "default-mm-loras": WHY["lora"],
    "pipeline-parallel-size": WHY["pipeline"],
    "decode-context-parallel-size": WHY["context"],
    "prefill-context-parallel-size": WHY["context"],
    "enable-dbo": WHY["overlap"],
    "ubatch-size": WHY["overlap"],
    "enable-prompt-embeds": WHY["prompt embeddings"],
    "enable-mm-embeds": WHY["image embeddings"],
    "video-pruning-rate": WHY["pruning"],
    "kv-transfer-config": WHY["connector"],
    "kv-offloading-size": WHY["connector"],
    "kv-offloading-backend": WHY["connector"],
    "ec-transfer-config": WHY["encoder connector"],
    "kv-cache-dtype": WHY["cache dtype"],
    "compilation-config": WHY["compilation"],
    "optimization-level": WHY["compilation"],
    "no-enforce-eager": WHY["compilation"],
    "model-impl": "another implementation of the model has no twin: leave it out.",
    "model-class-overrides": "another class of the model has no twin: leave it out.",
    "skip-mm-profiling": "memory must be measured with both views of a picture: leave it out.",
}
"""Options refused besides where a guard needs the twin engine."""

_NEUTRAL: dict[str, Collection[str]] = {
    **dict.fromkeys(
        ("pipeline-parallel-size", "decode-context-parallel-size", "prefill-context-parallel-size"), ("1",)
    ),
    "ubatch-size": ("0",),
    "kv-cache-dtype": CACHES,
    "logprobs-mode": ("processed_logprobs",),
    "generation-config": ("vllm",),
    "model-impl": ("auto", "vllm"),
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "ssl-cert-reqs": ("0",),
}
"""Values that change nothing."""

_OWN = frozenset(
    ("model", "uds", "middleware", "logits-processors", "logprobs-mode", "trust-request-mm-kwargs", "generation-config")
) | {"compilation-config"}
"""Options that `serve` gives vLLM itself; what it understood of them is looked at one by one, or by the engine."""

_WHOLE = ("hf-overrides", "limit-mm-per-prompt")


def parsed_amiss(parsed: Any, default: Callable[[str], Any], *, twin: bool) -> list[str]:
    """Return what is refused of the options that vLLM understood, wherever they came from: a --config file, too.

    Args:
        parsed: vLLM's namespace.
        default: of an option, by its name there.
        twin: whether the twin engine is served.
    """
    found = []
    for name, why in (ALWAYS | (TWIN if twin else {})).items():
        place = name.replace("-", "_")
        value = getattr(parsed, place, None)
        same = value == default(place) or str(value) in _NEUTRAL.get(name, ())
        if name not in _OWN and not same and value not in (None, False, [], {}):
            found.append(f"--{name}: {why}")
    return found


def check(passed: Passed, guards: Collection[str], *, twin: bool) -> None:
    """Refuse options, and a setting of the environment, under which a guard would be wrong, absent, or gone around.

    Args:
        passed: as the user wrote them.
        guards: that are to be served.
        twin: whether they need the twin engine.

    Raises:
        ServeError: it names each option and why.
    """
    refused = ALWAYS | (TWIN if twin else {})
    found = []
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        found.append("VLLM_USE_RUST_FRONTEND starts a server that no guard was tried with: unset it.")
    for name in passed.names:
        head = name.partition(".")[0]
        if head in _WHOLE and head != name:
            found.append(f"--{name}: give --{head} as one JSON object.")
        elif head in refused and not (name in _NEUTRAL and passed.value(name) in _NEUTRAL[name]):
            found.append(f"--{name}: {refused[head]}")
    if found:
        raise ServeError(f"The model can't be served with {', '.join(guards)} so. " + " ".join(found))
