"""`lvlm-guard doctor`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lvlm_guard.cli.console import FAILED, installed, out, print_json, quiet_libraries
from lvlm_guard.cli.options import Device, Dtype, Json
from lvlm_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

THINKS = "thinks first, and every token is guarded, of its thoughts as of its answer"
UNTRIED = "not tried: proved at the first guard(), or refused"
EXTRAS = {
    "eval": "evaluation on lmms-eval",
    "batch": "answers of whole data sets",
    "ray": "the same on many machines",
    "check": "checks of any endpoint's answers",
    "serve": "the vLLM server (GPU)",
    "serve-cpu": "the vLLM server (CPU)",
    "quant": "quantised models, device maps",
    "train": "adapters and training",
    "dev": "tests and checks",
}
_FAMILIES = typer.Option("--families", help="List the model families: proven, refused with the reason, or unknown.")
_MODEL = typer.Option(help="Prove a model of your own: 'embedded', a folder, or a hub id.", metavar="ID")
STYLES = {"ok": "green", "off": "dim", "missing": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One part: "ok", "off" (optional, not there), "missing" (needed), "broken"; and what to do about it."""

    part: str
    state: str
    detail: str
    fix: str = ""


def doctor(
    json: Json = False,
    families: Annotated[bool, _FAMILIES] = False,
    model: Annotated[str | None, _MODEL] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Say what is installed, which parts work here, and what to install for the rest.

    The embedded model answers one guarded question, so "works" is tried, not guessed. Exit code 1 where a
    part of the core does not work.

    --families lists the model families, --model proves the guard on one of yours.

    [bold]Example:[/bold] lvlm-guard doctor --model llava-hf/llava-1.5-7b-hf
    """
    with suppress(ImportError):  # what is missing is what it is to say
        quiet_libraries()
    if families or model is not None:
        rows = family_rows() if model is None else [proven_row(model, device, dtype)]
        if json:
            print_json("families", rows)
        else:
            _print((name.replace("_", " ") for name in rows[0]), (map(_shown, row.values()) for row in rows))
        return
    findings = list(examine())
    if json:
        print_json("doctor", [asdict(finding) for finding in findings])
    else:
        lines = ((f.part, Text(f.state, STYLES[f.state]), f.detail, f.fix) for f in findings)
        _print(("part", "", "found", "to do"), lines)
    if any(finding.state in ("missing", "broken") for finding in findings):
        raise typer.Exit(FAILED)


def _print(heads: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    out().print(table)


def _shown(value: Any) -> str:
    marks = {True: "yes", False: "no", None: "?"}
    return ", ".join(value) if isinstance(value, list) else str(marks.get(value, value))


def family_rows() -> list[dict[str, Any]]:
    """Return every model type of transformers that reads pictures: family, model_types, proven, methods, note.

    What is proven, and why others are refused, was found on tiny models of each type, by the same proof that
    `guard()` runs; `proven` is None for what it would prove first.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    from lvlm_guard.proving.proofs import table

    known = table()
    rows = []
    for kind in sorted({*NAMES, *(kind for kind in known if kind in CONFIG_MAPPING_NAMES)}):
        told, family = known.get(kind, {}), re.sub("_?For[A-Z].*", "", str(NAMES.get(kind) or kind))
        proven = True if "proof" in told else False if "refused" in told else None
        note = _limits(told["proof"], told["without"], told["thinks"]) if proven else told.get("refused", UNTRIED)
        methods = told.get("methods", [])
        rows.append({"family": family, "model_types": [kind], "proven": proven, "methods": methods, "note": note})
    return rows


def proven_row(name: str, device: str, dtype: str) -> dict[str, Any]:
    """Prove a user's own model, keep the proof for `guard()`, and return its row."""
    from lvlm_guard.errors import UnsupportedModelError
    from lvlm_guard.families.family import Family
    from lvlm_guard.pretrained import load_model
    from lvlm_guard.proving.proofs import proven, table

    model, processor = load_model(name, device=device, dtype=dtype)
    kind = model.config.model_type
    row: dict[str, Any] = {"family": type(model).__name__, "model_types": [kind], "proven": True, "methods": []}
    try:
        proof = proven(Family.of(model, processor), model, processor, "always").proof
    except UnsupportedModelError as error:
        return row | {"proven": False, "note": str(error)}
    found = f"off by {proof.error:.1g} of the logits' spread, where another picture moves them by {proof.seen:.2g}"
    without = {} if proof.hides else {"focus": proof.why.get("hides", "")}
    limits = _limits(asdict(proof), without, thinks_first(processor))
    asked = table().get(kind, {}).get("methods") or ("agla", "apc", "vote", "focus")
    note = "; ".join(filter(None, [found, limits]))
    return row | {"methods": [name for name in asked if name not in without], "note": note}


def thinks_first(processor: Any) -> bool:
    """Tell whether a processor's chat template lets the model think before it answers."""
    return "<think>" in str(getattr(processor, "chat_template", None))


def _limits(proof: dict[str, Any], without: dict[str, str], thinks: bool) -> str:
    """Return what a proof did not find right, so that it is not offered, each with what was found."""
    notes = {
        "way": "its branches run from the first step on",
        "stacks": "its branches run lazily, never stacked",
        "alone": "all requests of a batch run together",
        "crops": "after drafts or a change of beams a branch reads anew",
    }
    told = [f"{note} ({proof['why'].get(what, 'not proven')})" for what, note in notes.items() if not proof[what]]
    told += [f"no {what}: {why}" for what, why in without.items()]
    return "; ".join([THINKS] * thinks + told)


def examine() -> Iterator[Finding]:
    """Yield what was found, part by part."""
    yield Finding("python", "ok", sys.version.split()[0])
    for one in _required():
        version, wanted = installed(one.name), f"{one.name}{one.specifier}"
        if version is not None and one.specifier.contains(version, prereleases=True):
            yield Finding(one.name, "ok", version)
        else:
            here = "" if version is None else f"{version} is here, "
            yield Finding(one.name, "missing", f"{here}{wanted} is needed", f"pip install '{wanted}'")
    yield _tried("device", _device)
    yield _tried("embedded model", _embedded)
    yield _tried("a guarded answer", _guarded)
    yield _tried("methods and matchers", _registered)
    for extra, does in EXTRAS.items():
        versions = {one.name: installed(one.name) for one in _required(extra)}
        if absent := [name for name, version in versions.items() if version is None]:
            fix = f"pip install 'lvlm-guard[{extra}]'"
            yield Finding(f"[{extra}] {does}", "off", f"not here: {', '.join(absent)}", fix)
        elif versions:
            yield Finding(f"[{extra}] {does}", "ok", ", ".join(map(" ".join, versions.items())))  # type: ignore[arg-type]
    yield _tried("model hub", _offline)
    yield _tried("default matcher", _matcher)


def _tried(part: str, try_it: Callable[[], Finding | tuple[str, ...]]) -> Finding:
    """Return the finding of a try: off where an optional package is not installed, else broken by what it raises."""
    try:
        told = try_it()
        return told if isinstance(told, Finding) else Finding(part, *told)
    except MissingExtraError as missing:
        return Finding(part, "off", str(missing))
    except Exception as error:
        return Finding(part, "broken", f"{type(error).__name__}: {error}")


def _required(extra: str = "") -> list[Requirement]:
    """Return the requirements of the package itself, or of one of its extras; none where it is not installed."""
    from packaging.requirements import Requirement

    def asked_by(one: Requirement, extra: str) -> bool:
        return one.marker is None or one.marker.evaluate({"extra": extra})

    with suppress(PackageNotFoundError):
        found = [Requirement(line) for line in requires("lvlm-guard") or ()]
        return [one for one in found if asked_by(one, extra) and not (extra and asked_by(one, ""))]
    return []


def _device() -> tuple[str, ...]:
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        return "ok", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {whole / 2**30:.0f} GiB free"
    if torch.backends.mps.is_available():
        return "ok", "Apple GPU (mps)"
    return "ok", f"CPU, {torch.get_num_threads()} threads", "a CUDA GPU for models of billions"


def _embedded() -> tuple[str, ...]:
    from lvlm_guard import embedded

    weights = [folder / "model.safetensors" for folder in (embedded.MODEL, embedded.MATCHER)]
    sizes = [file.stat().st_size if file.is_file() else 0 for file in weights]
    if min(sizes) < 100_000:
        lacking = weights[sizes.index(min(sizes))].parent.name
        return "missing", f"no weights in embedded/{lacking}", "install the package again, or: make train-embedded"
    return "ok", f"model and matcher, {sum(sizes) / 1e6:.1f} MB"


def _guarded() -> tuple[str, ...]:
    from PIL import Image

    from lvlm_guard.api import guard
    from lvlm_guard.embedded.world import question, scenes
    from lvlm_guard.methods import AGLA
    from lvlm_guard.pretrained import ask, load_model

    model, processor = guard(*load_model(device="cpu"), AGLA(beta=0))  # every step needs the second view
    inputs = ask(processor, [[Image.fromarray(scenes("test", 1).image[0])]], [question("dog")])
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    if output.guard.masks != 1:
        return "broken", f"{output.guard.masks} second views were made instead of 1"
    return "ok", "the embedded model answered, AGLA's second view made"


def _registered() -> tuple[str, ...]:
    from lvlm_guard.cli.methods import found

    rows = found()
    failed = {
        off: [f"{row['name']} ({row['where']}): {row['error']}" for row in rows if row["error"] and row["off"] == off]
        for off in (False, True)
    }
    if failed[False]:
        return "broken", "; ".join(failed[False]), "update or uninstall the package it is from"
    told = [", ".join(row["name"] for row in rows if row["kind"] in ("method", "matcher") and not row["off"])]
    if foreign := [row["name"] for row in rows if not row["where"].startswith("lvlm_guard.")]:
        told.append(f"from other packages: {', '.join(foreign)}")
    if failed[True]:
        told.append(f"off: {'; '.join(failed[True])}")
    return "ok", "; ".join(told)


def _offline() -> tuple[str, ...]:
    from huggingface_hub import constants

    where = f"cache {constants.HF_HUB_CACHE}"
    told = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")]
    if told:
        return "off", f"switched off by {', '.join(told)}; {where}", f"unset {' '.join(told)} to fetch"
    return "ok", f"may be asked (not tried); {where}"


def _matcher() -> Finding:
    from huggingface_hub import try_to_load_from_cache

    from lvlm_guard.matching.blip_reading import LARGE

    part = f"matcher of other models, {LARGE}"
    held: Any = [try_to_load_from_cache(LARGE, name) for name in ("model.safetensors", "pytorch_model.bin")]
    if any(isinstance(path, str) for path in held):
        return Finding(part, "ok", "in the cache")
    return Finding(part, "off", "not in the cache; fetched on first use", f"hf download {LARGE}, once, with network")
