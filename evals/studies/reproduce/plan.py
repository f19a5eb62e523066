"""The grid of AGLA's paper (arXiv:2406.12718): which runs it takes, what they need, and how long they take.

    cells = plan()                                     # both models, POPE and CHAIR, both modes
    cells = plan("llava-1.5-7b", only=("gqa", "paper"))
    cells = plan("embedded")                           # the same grid on the embedded world

A cell is one run of `lvlm-guard eval run`: a model on a data set, with AGLA in one mode, beside plain sampling. POPE's
three kinds of questions are rows of one run. Nothing here loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lvlm_guard.errors import GuardError, did_you_mean
from lvlm_guard.evals.decoders.decoder import PAPER, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import usual_batch
from lvlm_guard.evals.spec.items import Kind
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.pope.files import DATA_SETS, identify, list_of_pictures

MODES = ("paper", "official")
PARTS = (("pope", "chair"), DATA_SETS, MODES)
HUB = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b",
}
"""The paper's models -> where their weights are."""

FAMILIES = {"llava": "llava-1.5-7b", "instructblip": "instructblip-vicuna-7b"}
"""`model_type` of a folder's config.json -> which of the paper's models it stands for."""

ITEMS = {"pope_coco": 5170, "pope_aokvqa": 5146, "pope_gqa": 5172, "chair": 100}
"""Questions of the published files (9,000 a data set; one that several kinds share is asked once), AGLA's captions."""

PICTURES = {"pope_coco": 500, "pope_aokvqa": 500, "pope_gqa": 500, "chair": 100}

# Seconds on one GPU of 80 GB (A100, H100) in half precision, one question at a time; assumed, not measured.
PREFILL, TOKEN, MATCH = 0.10, 0.03, 0.15
ANSWER, CAPTION = 3, 130  # tokens
EMBEDDED_ANSWER, EMBEDDED_CAPTION = 0.003, 0.02  # seconds on two cores
ASSUMED = (
    f"Hours are estimates for one GPU of 80 GB in half precision, one question at a time: {PREFILL:g} s to read "
    f"picture and question, {TOKEN:g} s a token, as much again for the second branch, {MATCH:g} s for the matcher, "
    f"{ANSWER} tokens an answer and {CAPTION} a caption. None of this was measured: run with --limit 20 first, and "
    "scale up."
)
ASSUMED_EMBEDDED = "Hours are estimates for two cores."


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        model: its name in the published tables, or "embedded".
        task: "pope" or "chair".
        data: "coco", "aokvqa", "gqa", or "world".
        mode: of AGLA.
        settings: of the run.
        items: questions or captions.
        answers: how many are asked for, all decoders and seeds.
        hours: estimated, see `ASSUMED`.
    """

    model: str
    task: str
    data: str
    mode: str
    settings: Settings
    items: int
    answers: int
    hours: float

    @property
    def name(self) -> str:
        """Its folder below the reproduction's."""
        return f"{self.model}/{self.task}-{self.data}-{self.mode}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its result rows."""
        return ("random", "popular", "adversarial") if self.task == "pope" else ("chair",)


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
    base = base or Settings()
    known = [part for parts in PARTS for part in parts]
    for name in only:
        if name not in known:
            raise DataError(f"The grid has no part {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}.")
    cells = []
    for name, place in _models(model):
        world = name == EMBEDDED
        grid = [("pope", data) for data in (("world",) if world else DATA_SETS)]
        for task, data in (*grid, ("chair", "world" if world else "coco")):
            for mode in MODES:
                if _kept(task, data, mode, only):
                    cells.append(_cell(name, task, data, mode, _settings(base, place, task, data, mode)))
    if not cells:
        raise DataError(f"Nothing of the grid is left of {model or 'both models'} with only={', '.join(only)}.")
    return cells


def _models(model: str | None) -> list[tuple[str, str]]:
    """Return (published name, place) of each model."""
    if model is None:
        return list(HUB.items())
    if model == EMBEDDED:
        return [(EMBEDDED, EMBEDDED)]
    for name, hub in HUB.items():
        if model in (name, hub):
            return [(name, hub)]
    config = Path(model) / "config.json"
    if config.is_file():
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{config} can't be read: {error}.") from error
        if kind in FAMILIES:
            return [(FAMILIES[kind], model)]
        raise DataError(f"{model} holds a model of the type {kind!r}: the paper's are {', '.join(FAMILIES)}.")
    known = [EMBEDDED, *HUB, *HUB.values()]
    raise DataError(
        f"{model!r} is none of the paper's models, nor a folder of one. {did_you_mean(model, known)}Known: "
        f"{', '.join(known)}."
    )


def _kept(task: str, data: str, mode: str, only: Sequence[str]) -> bool:
    mine = (task, data if task == "pope" else "", mode)
    chosen = [[name for name in only if name in parts] for parts in PARTS]
    return all(not names or name in names for names, name in zip(chosen, mine, strict=True))


def _settings(base: Settings, place: str, task: str, data: str, mode: str) -> Settings:
    name = "chair" if task == "chair" else f"pope_{data}"
    made = replace(
        base,
        model=place,
        tasks=((f"world_{task}",) if data == "world" else (name,)),
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
    for name in given:
        path = Path(name)
        if not path.exists():
            raise DataError(f"{path} is not there: give question files, or the folder that holds them.")
        for file in sorted(path.rglob("*.json*")) if path.is_dir() else [path]:
            listed = list_of_pictures(file)
            known = identify(file) or file.name.lower()
            if listed if task == "chair" else not listed and "pope" in file.name.lower() and data in known:
                yield str(file)


def _cell(name: str, task: str, data: str, mode: str, settings: Settings) -> Cell:
    if name == EMBEDDED:
        items = sum(len(made.items) for made in tasks_of(settings))
    else:
        known = settings.tasks[0]
        pictures = PICTURES[known]
        asked = (settings.captions or settings.limit if task == "chair" else settings.limit) or pictures
        items = round(ITEMS[known] * min(asked, pictures) / pictures)
    # a control that needs the matcher is counted without loading it
    kind: Kind = "pope" if task == "pope" else "chair"
    decoders = [d for d in decoders_of(settings, cast(Any, object())) if d.derive is None and d.suits(kind)]
    seconds = items * sum(_seconds(name, task, mode, decoder) * decoder.seeds for decoder in decoders)
    return Cell(name, task, data, mode, settings, items, items * sum(d.seeds for d in decoders), seconds / 3600)


def _seconds(model: str, task: str, mode: str, decoder: Decoder) -> float:
    """Estimate the seconds of one answer."""
    branch = decoder.method == "agla"
    if model == EMBEDDED:
        return (EMBEDDED_ANSWER if task == "pope" else EMBEDDED_CAPTION) * (1 + branch)
    tokens = (ANSWER if task == "pope" else CAPTION) - 1
    # official mode reads the second picture, and asks it for the first token only
    stepping = 1 + (branch and mode == "paper")
    return PREFILL * (1 + branch) + TOKEN * tokens * stepping + MATCH * branch


def missing(cells: Sequence[Cell]) -> list[str]:
    """Say what the cells need and this machine lacks, all of it: weights, question files, pictures, annotations.

    Question files that are not at hand are fetched; nothing is loaded.
    """
    from lvlm_guard.evals.studies.reproduce.needs import absent_weights

    found: dict[str, None] = dict.fromkeys(absent_weights(cells))
    for cell in {(cell.settings.tasks[0], cell.model): cell for cell in reversed(cells)}.values():
        try:
            tasks_of(cell.settings)
        except GuardError as error:
            found[str(error)] = None
    return list(found)
