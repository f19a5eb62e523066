"""The grid of AGLA's paper, as `agla.yaml` has it: which runs it takes, what they need, how long they take.

    cells = plan("llava-1.5-7b", only=("gqa", "paper"))
    print(*sentences(dry_run()), sep="\\n")            # nothing is loaded or fetched

A cell is one run of `lvlm-guard eval run`: a model on a data set, with AGLA in one mode, beside plain sampling. POPE's
three kinds of questions are rows of one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import yaml

import lvlm_guard
from lvlm_guard.cli.console import finite
from lvlm_guard.errors import GuardError, did_you_mean
from lvlm_guard.evals.decoders.decoder import PAPER, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import usual_batch
from lvlm_guard.evals.report.terminal import worded
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.items import Kind
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.coco import AGLA_PICTURES
from lvlm_guard.evals.tasks.pope.questions import DATA_SETS, IMANGE, KINDS, QUESTIONS, identify, list_of_pictures

COMMAND = "eval reproduce agla"
TABLE: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("agla.yaml").read_text(encoding="utf-8"))
MODES = ("paper", "official")
PARTS = (("pope", "chair"), DATA_SETS, MODES)
HUB = {name: model["hub"] for name, model in TABLE["models"].items()}


@dataclass(frozen=True)
class Cell:
    model: str  # its name in the published tables, or "embedded"
    task: str  # "pope" or "chair"
    data: str  # "coco", "aokvqa", "gqa", or "world"
    mode: str  # of AGLA
    settings: Settings  # of the run
    items: int  # questions or captions
    answers: int  # how many are asked for, all decoders and seeds
    hours: float  # estimated
    name: str  # its folder below the reproduction's
    kinds: tuple[str, ...]  # its result rows


def plan(model: str | None = None, only: Sequence[str] = (), base: Settings | None = None) -> list[Cell]:
    """Return the cells of the grid; raises `DataError` (no such model or part, or nothing is left).

    `model`: "llava-1.5-7b", "instructblip-vicuna-7b", their hub ids, a folder of either, or "embedded"; None: both.
    `only`: what to keep: "pope", "chair"; "coco", "aokvqa", "gqa" (of POPE); "paper", "official". `base`: pictures,
    files, seeds, limits, device, dtype, execution and batch; the rest is the grid's.
    """
    known = [part for parts in PARTS for part in parts]
    for name in (name for name in only if name not in known):
        raise DataError(f"The grid has no part {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}.")
    chosen = [[name for name in only if name in parts] for parts in PARTS]
    cells = []
    for (name, place), (asked, run), mode in product(_models(model), TABLE["runs"].items(), MODES):
        mine = (run["task"], run["data"] if run["task"] == "pope" else "", mode)
        fits = all(not names or part in names for names, part in zip(chosen, mine, strict=True))
        if fits and (run["data"] == "world") == (name == EMBEDDED):
            cells.append(_cell(name, run, mode, _settings(base or Settings(), place, asked, mode)))
    if not cells:
        raise DataError(f"Nothing of the grid is left of {model or 'both models'} with only={', '.join(only)}.")
    return cells


def _models(model: str | None) -> list[tuple[str, str]]:
    known = {EMBEDDED: EMBEDDED, **HUB}
    if model is None or model in known or model in HUB.values():
        return [pair for pair in known.items() if model in pair or (model is None and pair[0] != EMBEDDED)]
    if config := _config(model):
        names, kind = {one["type"]: name for name, one in TABLE["models"].items()}, config.get("model_type")
        if kind not in names:
            raise DataError(f"{model} holds a model of the type {kind!r}: the paper's are {', '.join(names)}.")
        return [(names[kind], model)]
    there = [*known, *HUB.values()]
    near = did_you_mean(model, there)
    raise DataError(f"{model!r} is no model of the paper, nor a folder of one. {near}Known: {', '.join(there)}.")


def _config(place: str) -> Any:
    path = Path(place) / "config.json"
    return jsonl.document(path) if path.is_file() else {}


def _settings(base: Settings, place: str, asked: str, mode: str) -> Settings:
    made = replace(
        base,
        model=place,
        tasks=(asked,),
        # the controls do not depend on the mode: they are asked once, in the paper's
        methods=("agla",) if mode == "paper" else ("sample", "agla-official"),
        controls=mode == "paper",
        knobs={},
        sweep={},
        split="test",
        preset=PAPER,
        questions=tuple(_questions_for(asked, base.questions)),
        # both releases answer in half precision; a folder's own dtype is its owner's business
        dtype="float16" if base.dtype == "auto" and place in HUB.values() else base.dtype,
    )
    return replace(made, batch=usual_batch(made)) if made.batch == 1 else made


def _questions_for(asked: str, given: Sequence[str]) -> Iterator[str]:
    run = TABLE["runs"][asked]
    for path in map(Path, given):
        if not path.exists():
            raise DataError(f"{path} is not there: give question files, or the folder that holds them.")
        for file in sorted(path.rglob("*.json*")) if path.is_dir() else [path]:
            listed, name = list_of_pictures(file), file.name.lower()
            pope = not listed and "pope" in name and run["data"] in (identify(file) or name)
            if listed if run["task"] == "chair" else pope:
                yield str(file)


def _cell(model: str, run: Mapping[str, Any], mode: str, settings: Settings) -> Cell:
    task, took = run["task"], TABLE["seconds"]
    if model == EMBEDDED:
        items = sum(len(made.items) for made in tasks_of(settings))
    else:
        asked = (task == "chair" and settings.captions) or settings.limit or run["pictures"]
        items = round(run["items"] * min(asked / run["pictures"], 1))

    def seconds(decoder: Decoder) -> float:
        branch = decoder.method in ("agla", "agla-official")
        if model == EMBEDDED:
            return float(TABLE["embedded_seconds"][task] * (1 + branch))
        # the release's shortcut reads the second picture, and asks it for the first token only
        steps = (TABLE["tokens"][task] - 1) * (1 + (branch and mode == "paper"))
        return float(took["prefill"] * (1 + branch) + took["token"] * steps + took["match"] * branch)

    # a control that needs the matcher is counted without loading it
    told = decoders_of(settings, cast(Any, object()))
    asking = [d for d in told if d.derive is None and d.suits(cast(Kind, task))]
    hours, kinds = items * sum(seconds(d) * d.seeds for d in asking) / 3600, KINDS if task == "pope" else ("chair",)
    answers, name = items * sum(d.seeds for d in asking), f"{model}/{task}-{run['data']}-{mode}"
    return Cell(model, task, run["data"], mode, settings, items, answers, hours, name, kinds)


def downloads(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what the cells need, each once; nothing for the embedded model. Each has "what", "place", "gb" (10^9
    bytes, about), "by_hand" (whether the user has to get it), and "there" (whether it is here already; None: that
    depends on where the user keeps it)."""
    real = [cell for cell in cells if cell.model != EMBEDDED]
    places = [cell.settings.model for cell in real]
    wanted = [place for place in places if place in TABLE["downloads"]]
    # a folder's model may name a matcher of its own
    wanted += ["matcher" for place in places if not (_config(place).get("lvlm_guard") or {}).get("matcher")]
    wanted += [need for cell in real for need in TABLE["runs"][cell.settings.tasks[0]]["needs"]]
    found = []
    for one in (TABLE["downloads"][name] for name in dict.fromkeys(wanted)):
        there = None if one["place"].startswith("http") else cached(one["place"])
        found.append({**one, "by_hand": True, "there": there})
    # AGLA asked COCO's adversarial questions in the copy that has misprints
    files = [(data, file.url) for (data, _), file in (QUESTIONS | {("coco", "adversarial"): IMANGE}).items()]
    asking = [cell for cell in real if not cell.settings.questions]
    urls = [AGLA_PICTURES.url if c.task == "chair" else url for c in asking for data, url in files if data == c.data]
    file = {"what": "question file", "gb": 0.0003, "by_hand": False, "there": None}
    return [*found, *({**file, "place": url} for url in dict.fromkeys(urls))]


def cached(hub: str) -> bool:
    """Return whether the hub's cache on this machine holds the weights, all their parts."""
    from huggingface_hub import try_to_load_from_cache

    config: Any = try_to_load_from_cache(hub, "config.json")
    folder = Path(config).parent if isinstance(config, str) else Path("none")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / part).exists() for part in jsonl.document(index)["weight_map"].values())
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def missing(cells: Sequence[Cell]) -> list[str]:
    """Say what the cells need and this machine lacks, all of it: weights, question files, pictures, annotations.
    Question files that are not at hand are fetched, weights are not: no run begins with 30 GB unasked."""
    told = "The weights of {place} are not here ({gb:g} GB): get them with `hf download {place}`."
    found = [told.format(**one) for one in downloads(cells) if one["there"] is False]
    for cell in {(cell.settings.tasks[0], cell.model): cell for cell in reversed(cells)}.values():
        try:
            tasks_of(cell.settings)
        except GuardError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def dry_run(model: str | None = None, only: Sequence[str] = (), base: Settings | None = None) -> dict[str, Any]:
    """Return, as JSON data, the runs, what they need, and the estimated hours; arguments and errors as `plan`'s. "gb"
    is of what is not known to be here."""
    cells = plan(model, only, base)
    needs, told = downloads(cells), {"command": COMMAND, "version": lvlm_guard.__version__, "dry_run": True}
    told |= {"hours": sum(cell.hours for cell in cells), "gb": sum(one["gb"] for one in needs if not one["there"])}
    told["cells"] = [vars(cell) | {"settings": cell.settings.to_dict()} for cell in cells]
    found: dict[str, Any] = finite(told | {"downloads": needs})
    return found


def sentences(found: Mapping[str, Any]) -> list[str]:
    return worded("dry_run", **found, table=TABLE, embedded=EMBEDDED)
