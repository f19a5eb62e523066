"""The grid of AGLA's paper (arXiv:2406.12718): which runs it takes, and how long they take. Nothing loads a model.

    cells = plan()                                     # both models, POPE and CHAIR, both modes
    cells = plan("llava-1.5-7b", only=("gqa", "paper"))
    cells = plan("embedded")                           # the same grid on the embedded world

A cell is one run of `lvlm-guard eval run`: a model on a data set, with AGLA in one mode, beside plain sampling. POPE's
three kinds of questions are rows of one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.decoders.decoder import PAPER, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import usual_batch
from lvlm_guard.evals.spec.items import Kind
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.pope.files import DATA_SETS, identify, list_of_pictures
from lvlm_guard.evals.tasks.pope.questions import KINDS

MODES = ("paper", "official")
PARTS = (("pope", "chair"), DATA_SETS, MODES)
HUB = {"llava-1.5-7b": "llava-hf/llava-1.5-7b-hf", "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b"}
"""The paper's models -> where their weights are."""

FAMILIES = dict(zip(("llava", "instructblip"), HUB, strict=True))
"""`model_type` of a folder's config.json -> which of the paper's models it stands for."""

ITEMS = {"pope_coco": 5170, "pope_aokvqa": 5146, "pope_gqa": 5172, "chair": 100}
"""Questions of the published files (9,000 a data set; one that several kinds share is asked once), AGLA's captions."""

PICTURES = {"pope": 500, "chair": 100}  # of a data set

# Seconds on one GPU of 80 GB (A100, H100) in half precision, one question at a time; assumed, not measured.
PREFILL, TOKEN, MATCH = 0.10, 0.03, 0.15
TOKENS = {"pope": 3, "chair": 130}  # an answer
EMBEDDED_SECONDS = {"pope": 0.003, "chair": 0.02}  # an answer, on two cores
ASSUMED = (
    f"Hours are estimates for one GPU of 80 GB in half precision, one question at a time: {PREFILL:g} s to read "
    f"picture and question, {TOKEN:g} s a token, as much again for the second branch, {MATCH:g} s for the matcher, "
    f"{TOKENS['pope']} tokens an answer and {TOKENS['chair']} a caption. None of this was measured: run with --limit "
    "20 first, and scale up."
)


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    model: str  # its name in the published tables, or "embedded"
    task: str  # "pope" or "chair"
    data: str  # "coco", "aokvqa", "gqa", or "world"
    mode: str  # of AGLA
    settings: Settings  # of the run
    items: int  # questions or captions
    answers: int  # how many are asked for, all decoders and seeds
    hours: float  # estimated, see `ASSUMED`

    @property
    def name(self) -> str:
        """Its folder below the reproduction's."""
        return f"{self.model}/{self.task}-{self.data}-{self.mode}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its result rows."""
        return KINDS if self.task == "pope" else ("chair",)


def plan(model: str | None = None, only: Sequence[str] = (), base: Settings | None = None) -> list[Cell]:
    """Return the cells of the grid.

    Args:
        model: "llava-1.5-7b", "instructblip-vicuna-7b", their hub ids, a folder of either, or "embedded"; None: both.
        only: what to keep: "pope", "chair"; "coco", "aokvqa", "gqa" (of POPE); "paper", "official".
        base: pictures, annotations, question files, seeds, limit, captions, device, dtype, execution, batch and
            workers' settings; the rest is the grid's.

    Raises:
        DataError: no such model or part, or nothing is left.
    """
    known = [part for parts in PARTS for part in parts]
    for name in only:
        if name not in known:
            raise DataError(f"The grid has no part {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}.")
    chosen = [[name for name in only if name in parts] for parts in PARTS]
    cells = []
    for name, place in _models(model):
        sets = ("world",) if name == EMBEDDED else DATA_SETS
        for (task, data), mode in product([*product(["pope"], sets), ("chair", sets[0])], MODES):
            mine = (task, data if task == "pope" else "", mode)
            if all(not names or part in names for names, part in zip(chosen, mine, strict=True)):
                cells.append(_cell(name, task, data, mode, _settings(base or Settings(), place, task, data, mode)))
    if not cells:
        raise DataError(f"Nothing of the grid is left of {model or 'both models'} with only={', '.join(only)}.")
    return cells


def config_of(place: str) -> Mapping[str, Any]:
    """Return a folder's config.json, empty where there is none; raises `DataError` where it can't be read."""
    path = Path(place) / "config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error


def _models(model: str | None) -> list[tuple[str, str]]:
    """Return (published name, place) of each model."""
    if model is None:
        return list(HUB.items())
    if model == EMBEDDED:
        return [(EMBEDDED, EMBEDDED)]
    for pair in HUB.items():
        if model in pair:
            return [pair]
    if config := config_of(model):
        if (kind := config.get("model_type")) in FAMILIES:
            return [(FAMILIES[kind], model)]
        raise DataError(f"{model} holds a model of the type {kind!r}: the paper's are {', '.join(FAMILIES)}.")
    known = [EMBEDDED, *HUB, *HUB.values()]
    raise DataError(
        f"{model!r} is none of the paper's models, nor a folder of one. {did_you_mean(model, known)}Known: "
        f"{', '.join(known)}."
    )


def _settings(base: Settings, place: str, task: str, data: str, mode: str) -> Settings:
    name = f"world_{task}" if data == "world" else "chair" if task == "chair" else f"pope_{data}"
    made = replace(
        base,
        model=place,
        tasks=(name,),
        # the controls do not depend on the mode: they are asked once, in the paper's
        methods=("agla",) if mode == "paper" else ("sample", "agla"),
        controls=mode == "paper",
        knobs={"agla": {"mode": mode}},
        sweep={},
        split="test",
        preset=PAPER,
        questions=tuple(_questions_for(task, data, base.questions)),
        # both releases answer in half precision; a folder's own dtype is its owner's business
        dtype="float16" if base.dtype == "auto" and place in HUB.values() else base.dtype,
    )
    return replace(made, batch=usual_batch(made)) if made.batch == 1 else made


def _questions_for(task: str, data: str, given: Sequence[str]) -> Iterator[str]:
    """Yield those of some question files and lists, folders looked through, that a task asks."""
    for path in map(Path, given):
        if not path.exists():
            raise DataError(f"{path} is not there: give question files, or the folder that holds them.")
        for file in sorted(path.rglob("*.json*")) if path.is_dir() else [path]:
            listed = list_of_pictures(file)
            known = identify(file) or file.name.lower()
            if listed if task == "chair" else not listed and "pope" in file.name.lower() and data in known:
                yield str(file)


def _cell(model: str, task: str, data: str, mode: str, settings: Settings) -> Cell:
    if model == EMBEDDED:
        items = sum(len(made.items) for made in tasks_of(settings))
    else:
        asked = (task == "chair" and settings.captions) or settings.limit or PICTURES[task]
        items = round(ITEMS[settings.tasks[0]] * min(asked / PICTURES[task], 1))

    def seconds(decoder: Decoder) -> float:
        branch = decoder.method == "agla"
        if model == EMBEDDED:
            return EMBEDDED_SECONDS[task] * (1 + branch)
        # official mode reads the second picture, and asks it for the first token only
        stepping = 1 + (branch and mode == "paper")
        return PREFILL * (1 + branch) + TOKEN * (TOKENS[task] - 1) * stepping + MATCH * branch

    # a control that needs the matcher is counted without loading it
    told = decoders_of(settings, cast(Any, object()))
    asking = [d for d in told if d.derive is None and d.suits(cast(Kind, task))]
    hours = items * sum(seconds(d) * d.seeds for d in asking) / 3600
    return Cell(model, task, data, mode, settings, items, items * sum(d.seeds for d in asking), hours)
