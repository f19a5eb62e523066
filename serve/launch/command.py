"""vLLM's command line and environment, from what a user said."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from lvlm_guard.errors import KnobError
from lvlm_guard.serve.engine.plugin import CUT
from lvlm_guard.serve.engine.plugin import PROCESSOR as TWIN_PROCESSOR
from lvlm_guard.serve.front.settings import KEY, VARIABLE, FrontSettings
from lvlm_guard.serve.launch.checkpoint import Checkpoint
from lvlm_guard.serve.launch.installed import Installed
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.maskd.asks import SHARED
from lvlm_guard.serve.vote import PROCESSOR as VOTE_PROCESSOR
from lvlm_guard.serve.vote.ballot import VOCABULARY, served_vocabulary, spelled_out

PLUGIN = "lvlm_guard"
"""Name of our entry point among vLLM's plug-ins."""

GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""A twin engine on a CUDA GPU: eager prefill, whole decode steps as graphs; see `refuse.WHY["compilation"]`."""

UPSTREAM_KEY = "LVLM_GUARD_UPSTREAM_KEY"
"""Environment variable of the key that an endpoint asks for whose answers are checked."""

PATIENCE = 30
"""Seconds that running requests get to end."""

FRONTS = (
    "shutdown-timeout",
    "ssl-certfile",
    "ssl-keyfile",
    "ssl-ca-certs",
    "root-path",
    "allowed-origins",
    "host",
    "port",
)
"""vLLM's options that are the front's now."""

MERGED = ("additional-config",)

_EMBEDDED_CACHE = 256 << 20  # bytes; 256 sequences of the embedded model at its longest


def command(
    checkpoint: Checkpoint,
    guards: tuple[str, ...],
    machine: Installed,
    *,
    names: tuple[str, ...],
    most_pictures: int,
    uds: str,
    eager: bool,
    twin: str | None,
) -> list[str]:
    """Return the command line of vLLM's process; our options come last, where the last one counts.

    Args:
        checkpoint: the model.
        guards: that are served.
        machine: the vLLM that runs, and on what.
        names: plain ones that vLLM serves; those of adapters it knows itself.
        most_pictures: in one request.
        uds: path of the socket to listen on, which nobody but its owner reaches.
        eager: leave CUDA graphs out.
        twin: class with two branches that is served in the model's place; None: the model as it is.

    Raises:
        KnobError: an option that is merged with ours is no JSON object, or says what another option says.
    """
    passed = checkpoint.passed
    said: list[str] = ["--model", checkpoint.place, "--uds", uds]
    said += ["--served-model-name", *names]
    said += ["--trust-request-mm-kwargs", "--generation-config", "vllm"]
    said += ["--logprobs-mode", "processed_logprobs"]
    processors = [TWIN_PROCESSOR] if twin else [CUT] if "apc" in guards else []
    processors += [VOTE_PROCESSOR] if "vote" in guards else []
    said += ["--logits-processors", *processors]
    said += ["--limit-mm-per-prompt", json.dumps(_limits(passed, most_pictures, twin))]
    overrides = passed.object("hf-overrides")
    if twin:
        if "architectures" in overrides:
            raise KnobError(
                f"--hf-overrides names architectures, but the guards need {twin}: leave it out, or serve --guards vote."
            )
        overrides["architectures"] = [twin]
    if overrides:
        said += ["--hf-overrides", json.dumps(overrides)]
    if "vote" in guards:
        # an environment does not reach the workers that Ray starts on other machines
        more = passed.object("additional-config") | {VOCABULARY: spelled_out(served_vocabulary())}
        said += ["--additional-config", json.dumps(more)]
    if eager or (twin and not machine.cuda):
        said += ["--enforce-eager"]
    elif twin and "enforce-eager" not in passed:
        said += ["--compilation-config", json.dumps(GRAPHS)]
    said += _defaults(checkpoint, machine)
    theirs = passed.without(*FRONTS, "hf-overrides", "limit-mm-per-prompt", *MERGED[: "vote" in guards])
    return [sys.executable, "-m", "lvlm_guard.serve.launch.engine", *theirs, *said]


def for_front(settings: FrontSettings, counts: Path) -> dict[str, str]:
    """Return the environment of the front; its processes keep what they count in an empty folder."""
    inherited = {name: value for name, value in os.environ.items() if name != UPSTREAM_KEY}
    return {**inherited, VARIABLE: settings.to_json(), SHARED: str(counts)}


def front_command(passed: Passed, fd: int, workers: int) -> list[str]:
    """Return the command line of the front: some of vLLM's options are its own, `fd` is of the bound socket."""
    said: dict[str, Any] = {"fd": fd, "workers": workers, "timeout_graceful_shutdown": patience_of(passed)}
    for name in ("ssl-certfile", "ssl-keyfile", "ssl-ca-certs", "root-path"):
        if name in passed:
            said[name.replace("-", "_")] = passed.value(name)
    return [sys.executable, "-m", "lvlm_guard.serve.front", json.dumps(said)]


def patience_of(passed: Passed) -> int:
    """Return for how many seconds running requests get to end; raises `KnobError` where that is no whole number."""
    text = passed.value("shutdown-timeout", str(PATIENCE))
    if not text.isdigit():
        raise KnobError(f"--shutdown-timeout {text!r}: give whole seconds.")
    return int(text)


def environment(key: str, checkpoint: Checkpoint, machine: Installed, counts: Path) -> dict[str, str]:
    """Return the environment of vLLM's process.

    Args:
        key: that the front asks it with.
        checkpoint: the model.
        machine: that it runs on.
        counts: empty folder in which prometheus_client adds up what vLLM's processes count: tokens are counted by
            the engine, and /metrics is answered by another process.
    """
    made = {**os.environ, KEY: key, SHARED: str(counts)}
    plugins = made.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        made["VLLM_PLUGINS"] = f"{plugins},{PLUGIN}".removeprefix(",")
    if machine.cpu:
        # bound to cores one by one, vLLM and the matcher would be bound to the same ones
        made.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if checkpoint.embedded or not any(map(shutil.which, ("g++", "c++", "clang++"))):
            made.setdefault("TORCH_COMPILE_DISABLE", "1")
    if checkpoint.embedded:
        made.setdefault("HF_HUB_OFFLINE", "1")
        made.setdefault("VLLM_NO_USAGE_STATS", "1")
    return made


def for_matcher() -> dict[str, str]:
    """Return the environment of the matcher service: it needs neither keys nor token."""
    return {name: value for name, value in os.environ.items() if name not in (KEY, VARIABLE, UPSTREAM_KEY)}


def adapters(passed: Passed) -> list[str]:
    """Return the names of LoRA adapters that vLLM serves beside the model.

    Raises:
        KnobError: one is neither NAME=PATH nor a JSON object with a name.
    """
    names = []
    for one in passed.values("lora-modules"):
        try:
            name = json.loads(one)["name"] if one.startswith("{") else one[: one.index("=")]
        except (ValueError, KeyError) as error:
            raise KnobError(f"--lora-modules {one!r} has no name: write NAME=PATH.") from error
        names.append(str(name))
    return names


def _limits(passed: Passed, most: int, twin: str | None) -> dict[str, Any]:
    limits = passed.object("limit-mm-per-prompt")
    if "image" in limits:
        raise KnobError(f"--limit-mm-per-prompt limits pictures, which --most-pictures does ({most}): leave image out.")
    if twin:
        limits["video"] = 0  # has no second view
    return {**limits, "image": most}


def _defaults(checkpoint: Checkpoint, machine: Installed) -> list[str]:
    """Return what makes the embedded model start anywhere: it is tiny, and vLLM would reserve for a large one."""
    passed, said = checkpoint.passed, []
    if not checkpoint.embedded:
        return []
    if "dtype" not in passed:
        said += ["--dtype", "float32"]
    sized = {"kv-cache-memory-bytes", "num-gpu-blocks-override", "gpu-memory-utilization"} & set(passed.names)
    if not sized and not (machine.cpu and "VLLM_CPU_KVCACHE_SPACE" in os.environ):
        said += ["--kv-cache-memory-bytes", str(_EMBEDDED_CACHE)]
    return said
