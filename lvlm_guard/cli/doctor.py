"""`lvlm-guard doctor`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.console import FAILED, installed, out, print_json, quiet_libraries
from lvlm_guard.cli.options import Device, Dtype, Json
from lvlm_guard.errors import MissingExtraError

THINKS = "thinks first, and every token is guarded, of its thoughts as of its answer"
UNTRIED = "not tried: proved at the first guard(), or refused"
UNASKED = "its methods were not asked one by one"
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
    families: Annotated[
        bool, typer.Option("--families", help="List the model families: proven, refused with the reason, or unknown.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Prove a model of your own: 'embedded', a folder, or a hub id.", metavar="ID")
    ] = None,
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
            return
        shown = Table(box=None, pad_edge=False)
        for column in rows[0]:
            shown.add_column(column.replace("_", " "), overflow="fold")
        for row in rows:
            shown.add_row(*(escape(_shown(value)) for value in row.values()))
        out().print(shown)
        return
    findings = list(examine())
    if json:
        print_json("doctor", [asdict(finding) for finding in findings])
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("part", "", "found", "to do"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            style = STYLES[finding.state]
            table.add_row(
                escape(finding.part), f"[{style}]{finding.state}[/]", escape(finding.detail), escape(finding.fix)
            )
        out().print(table)
    if any(finding.state in ("missing", "broken") for finding in findings):
        raise typer.Exit(FAILED)


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
        told = known.get(kind, {})
        name = str(NAMES.get(kind) or kind)
        row: dict[str, Any] = {"family": re.sub("_?For[A-Z].*", "", name), "model_types": [kind], "proven": None}
        row |= {"methods": [], "note": told.get("untried", UNTRIED)}
        if "proof" in told:
            limits = _limits(told["proof"], told.get("without", {}), told.get("thinks", False))
            note = "; ".join(filter(None, (UNASKED * ("methods" not in told), limits)))
            row |= {"proven": True, "methods": told.get("methods", []), "note": note}
        elif "refused" in told:
            row |= {"proven": False, "note": told["refused"]}
        rows.append(row)
    return rows


def proven_row(name: str, device: str, dtype: str) -> dict[str, Any]:
    """Prove a user's own model, keep the proof for `guard()`, and return its row."""
    from lvlm_guard.errors import UnsupportedModelError
    from lvlm_guard.families.family import Family
    from lvlm_guard.pretrained import load_model
    from lvlm_guard.proving.proofs import proven

    model, processor = load_model(name, device=device, dtype=dtype)
    kind = model.config.model_type
    row: dict[str, Any] = {"family": type(model).__name__, "model_types": [kind], "proven": True, "methods": []}
    try:
        proof = proven(Family.of(model, processor), model, processor, "always").proof
    except UnsupportedModelError as error:
        return row | {"proven": False, "note": str(error)}
    told = next((one for one in family_rows() if kind in one["model_types"]), row)
    found = f"off by {proof.error:.1g} of the logits' spread, where another picture moves them by {proof.seen:.2g}"
    without = {} if proof.hides else {"focus": proof.why.get("hides", "")}
    limits = _limits(asdict(proof), without, thinks_first(processor))
    names = [name for name in told["methods"] or ["agla", "apc", "vote", "focus"] if name not in without]
    return row | {"methods": names, "note": "; ".join(filter(None, [found, limits]))}


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


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return {True: "yes", False: "no", None: "?"}[value] if value is None or isinstance(value, bool) else str(value)


def examine() -> Iterator[Finding]:
    """Yield what was found, part by part."""
    yield Finding("python", "ok", sys.version.split()[0])
    yield from _packages()
    yield _tried("device", _device)
    yield _tried("embedded model", _embedded)
    yield _tried("a guarded answer", _guarded)
    yield _tried("methods and matchers", _registered)
    yield from _extras()
    yield _offline()
    yield _tried("default matcher", _matcher)


def _tried(part: str, try_it: Callable[[], Finding]) -> Finding:
    """Return the finding of a try: off where an optional package is not installed, else broken by what it raises."""
    try:
        return try_it()
    except MissingExtraError as missing:
        return Finding(part, "off", str(missing))
    except Exception as error:
        return Finding(part, "broken", f"{type(error).__name__}: {error}")


def _wanted(extra: str | None) -> list[str]:
    """Return the requirements of the package itself, or of one of its extras."""
    try:
        lines = requires("lvlm-guard") or []
    except PackageNotFoundError:
        return []
    mark = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
    found = []
    for line in lines:
        told = mark.search(line)
        if (told.group(1) if told else None) == extra:
            found.append(line.split(";")[0].strip())
    return found


def _packages() -> Iterator[Finding]:
    for wanted in _wanted(None):
        name = re.split(r"[\s<>=!~\[]", wanted)[0]
        version = installed(name)
        if version is None:
            yield Finding(name, "missing", f"{wanted} is needed", f"pip install '{wanted}'")
        elif not _fits(version, wanted):
            yield Finding(name, "missing", f"{version} is here, {wanted} is needed", f"pip install '{wanted}'")
        else:
            yield Finding(name, "ok", version)


def _fits(version: str, wanted: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(wanted).specifier.contains(version, prereleases=True)


def _extras() -> Iterator[Finding]:
    for extra, does in (
        ("eval", "evaluation on lmms-eval"),
        ("batch", "answers of whole data sets"),
        ("ray", "the same on many machines"),
        ("check", "checks of any endpoint's answers"),
        ("serve", "the vLLM server (GPU)"),
        ("serve-cpu", "the vLLM server (CPU)"),
        ("quant", "quantised models, device maps"),
        ("train", "adapters and training"),
        ("dev", "tests and checks"),
    ):
        names = [re.split(r"[\s<>=!~\[]", wanted)[0] for wanted in _wanted(extra)]
        absent = [name for name in names if installed(name) is None]
        if not names:
            continue
        if absent:
            yield Finding(
                f"[{extra}] {does}", "off", f"not here: {', '.join(absent)}", f"pip install 'lvlm-guard[{extra}]'"
            )
        else:
            yield Finding(f"[{extra}] {does}", "ok", ", ".join(f"{name} {installed(name)}" for name in names))


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", "ok", f"{name}, {free / 2**30:.0f} of {whole / 2**30:.0f} GiB free")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "Apple GPU (mps)")
    return Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads", "a CUDA GPU for models of billions")


def _embedded() -> Finding:
    from lvlm_guard import embedded

    for folder in (embedded.MODEL, embedded.MATCHER):
        weights = folder / "model.safetensors"
        if not weights.is_file() or weights.stat().st_size < 100_000:
            fix = "install the package again, or: make train-embedded"
            return Finding("embedded model", "missing", f"no weights in embedded/{folder.name}", fix)
    size = sum((folder / "model.safetensors").stat().st_size for folder in (embedded.MODEL, embedded.MATCHER))
    return Finding("embedded model", "ok", f"model and matcher, {size / 1e6:.1f} MB")


def _guarded() -> Finding:
    from PIL import Image

    from lvlm_guard.api import guard
    from lvlm_guard.embedded.world import question, scenes
    from lvlm_guard.methods import AGLA
    from lvlm_guard.pretrained import ask, load_model

    model, processor = guard(*load_model(device="cpu"), AGLA(beta=0))  # every step needs the second view
    inputs = ask(processor, [[Image.fromarray(scenes("test", 1).image[0])]], [question("dog")])
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    if output.guard.masks != 1:
        return Finding("a guarded answer", "broken", f"{output.guard.masks} second views were made instead of 1")
    return Finding("a guarded answer", "ok", "the embedded model answered, AGLA's second view made")


def _registered() -> Finding:
    from lvlm_guard.cli.methods import found

    rows = found()
    told = [(row["off"], f"{row['name']} ({row['where']}): {row['error']}") for row in rows if row["error"]]
    broken, off = ([why for is_off, why in told if is_off == kind] for kind in (False, True))
    if broken:
        return Finding(
            "methods and matchers", "broken", "; ".join(broken), "update or uninstall the package it is from"
        )
    foreign = [row["name"] for row in rows if not row["where"].startswith("lvlm_guard.")]
    more = f"; from other packages: {', '.join(foreign)}" if foreign else ""
    names = ", ".join(row["name"] for row in rows if row["kind"] in ("method", "matcher") and not row["off"])
    if off:
        return Finding("methods and matchers", "ok", names + more + "; off: " + "; ".join(off))
    return Finding("methods and matchers", "ok", names + more)


def _offline() -> Finding:
    from huggingface_hub import constants

    told = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")]
    where = f"cache {constants.HF_HUB_CACHE}"
    if told:
        return Finding(
            "model hub", "off", f"switched off by {', '.join(told)}; {where}", f"unset {' '.join(told)} to fetch"
        )
    return Finding("model hub", "ok", f"may be asked (not tried); {where}")


def _matcher() -> Finding:
    from huggingface_hub import try_to_load_from_cache

    from lvlm_guard.matching.blip_weights import LARGE

    held: Any = [try_to_load_from_cache(LARGE, name) for name in ("model.safetensors", "pytorch_model.bin")]
    if any(isinstance(path, str) for path in held):
        return Finding(f"matcher of other models, {LARGE}", "ok", "in the cache")
    fix = f"hf download {LARGE}, once, with network"
    return Finding(f"matcher of other models, {LARGE}", "off", "not in the cache; fetched on first use", fix)
