"""Which guards a model is served with, and the options of vLLM that are refused for them, each with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import did_you_mean
from lvlm_guard.methods import REGISTRY
from lvlm_guard.proof import KNOBS
from lvlm_guard.serve.engine.plugin import BOTH_WAYS, CUT, FAMILIES, TWINS
from lvlm_guard.serve.engine.plugin import PROCESSOR as TWIN_PROCESSOR
from lvlm_guard.serve.engine.refuse import CACHES, WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.vote import PROCESSOR as VOTE_PROCESSOR

if TYPE_CHECKING:
    from lvlm_guard.serve.launch.checkpoint import Checkpoint

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

_LOOKED_AT = ("model", "uds", "logits-processors", "compilation-config")
"""Options that `serve` gives vLLM itself, and that are looked at elsewhere, or by the engine."""

_OWN: dict[str, Any] = {
    "middleware": [],
    "trust-request-mm-kwargs": True,
    "logprobs-mode": "processed_logprobs",
    "generation-config": "vllm",
}
"""Those of which vLLM has to have understood what `serve` says."""

_WHOLE = ("hf-overrides", "limit-mm-per-prompt")


def guards_of(asked: tuple[str, ...] | None, checkpoint: Checkpoint, *, cpu: bool = False) -> tuple[str, ...]:
    """Return the guards to serve.

    Args:
        asked: by the user; None for those that suit the model.
        checkpoint: the model.
        cpu: whether vLLM is a build for CPUs.

    Raises:
        ServeError: one can't be served, or not with this model.
    """
    lacking = _no_twin(checkpoint, cpu)
    if asked is None:
        return ("vote",) if lacking else ("agla", "vote")
    if not asked:
        raise ServeError(f"No guard is named: give --guards some of {', '.join(KNOBS)}, or leave it out.")
    for guard in asked:
        if guard not in KNOBS:
            raise ServeError(f"{guard!r} can't be served. {did_you_mean(guard, KNOBS)}Known: {', '.join(KNOBS)}.")
    if (needs := branched(asked)) and lacking:
        raise ServeError(
            f"{', '.join(needs)} compares two readings of the picture, for which a model needs a twin, and "
            f"{checkpoint.architecture or checkpoint.name} has none{lacking} These have one: {', '.join(FAMILIES)}. "
            "Any model can be served with --guards vote,apc."
        )
    return tuple(dict.fromkeys(asked))


def _no_twin(checkpoint: Checkpoint, cpu: bool) -> str:
    """Return the end of a sentence that says why a model has no twin; "" where it has one."""
    if cpu and checkpoint.architecture in BOTH_WAYS:
        return " here: it reads a picture's tokens both ways, and vLLM's attention for CPUs reads them causally."
    if checkpoint.architecture == "InternVLChatModel":
        return ", since its code is the checkpoint's own: serve the one with -hf behind its name."
    return "" if checkpoint.twin else "."


def branched(guards: Iterable[str]) -> list[str]:
    """Return those of the guards that need a second branch, and so a twin."""
    return [guard for guard in guards if REGISTRY.get(guard)().branches()]


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


def check_parsed(parsed: Any, default: Callable[[str], Any]) -> None:
    """Look once more at what vLLM understood: a --config file can say what the command line may not.

    Args:
        parsed: vLLM's namespace.
        default: of an option, by its name there.

    Raises:
        ServeError: there is a way around the front, or what would break a guard.
    """
    twin = set(TWINS) & set((parsed.hf_overrides or {}).get("architectures") or ())
    given = {name: getattr(parsed, name.replace("-", "_"), None) for name in [*ALWAYS, *(TWIN if twin else ())]}
    found = []
    for name, value in given.items():
        same = value == default(name.replace("-", "_")) or str(value) in _NEUTRAL.get(name, ())
        if name in _OWN and value != _OWN[name]:
            found.append(f"--{name}: lvlm-guard serve sets it, and it would go around the guard: leave it out.")
        elif name not in (*_OWN, *_LOOKED_AT) and not same and value not in (None, False, [], {}):
            found.append(f"--{name}: {(ALWAYS | TWIN)[name]}")
    if set(parsed.logits_processors or ()) - {TWIN_PROCESSOR, CUT, VOTE_PROCESSOR}:
        found.append(f"--logits-processors: {ALWAYS['logits-processors']}")
    if found:
        raise ServeError("An option, perhaps of a --config file, is refused. " + " ".join(found))
