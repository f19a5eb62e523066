"""What `lvlm-guard train dual-prompt` and `train ranker` do: trainings for several seeds, then all of them compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

import lvlm_guard
from lvlm_guard.adapters import world
from lvlm_guard.adapters.data import CaptionData, RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.distill.run import adapter_folders
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation import ranking as of_rankings
from lvlm_guard.adapters.evaluation import retrieval as of_retrieval
from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import UNTUNED
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.presets import BASELINES, PRESETS
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, known_of
from lvlm_guard.adapters.retrieval.encoding import Encoder
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.curves import markdown, write_report
from lvlm_guard.adapters.training.ranking import RankingTask
from lvlm_guard.adapters.training.recipe import BEGUN, CURVE, DONE, TRAINING, Recipe, read_json, write_json
from lvlm_guard.errors import GuardError

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
Echo = Callable[[str], object]


@dataclass(frozen=True)
class Call:
    """How a command was asked.

    Args:
        out: folder; the same call goes on there.
        seeds: of trainings, an adapter each.
        compare: whether baselines are trained on the same data and all are measured on the test part.
        device: "cpu", or "auto".
        workers: processes that read pictures.
        report_to: trackers that are told of losses and measurements, as `transformers` names them.
        start_over: drop what an earlier call left in the folder.
        pictures: most of the test part that are measured on; None for all.
        echo: told what happens, a line at a time.
        progress: opens a progress bar.
        line: the command as it was typed.
        environment: where it runs.
    """

    out: Path
    seeds: Sequence[int]
    compare: bool
    device: str
    workers: int
    report_to: str
    start_over: bool
    pictures: int | None
    echo: Echo
    progress: Progress
    line: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TrainingError(f"seeds are {list(self.seeds)}: give one or more different numbers.")
        if self.start_over and PartialState(cpu=self.device == "cpu").is_main_process:
            below = (
                (self.out / "baselines").glob(f"*/*/{TRAINING}"),
                *(self.out.glob(f"{d}{TRAINING}") for d in ("*/", "*/*/")),
            )
            for place in (*(folder / TRAINING for folder in self.folders), *(path for each in below for path in each)):
                if any((place / mark).exists() for mark in (BEGUN, DONE)):  # no folder of another's that is called so
                    shutil.rmtree(place, ignore_errors=True)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the adapters lie."""
        return adapter_folders(self.out, self.seeds)

    def baseline(self, name: str, seed: int) -> Path:
        """Return where a baseline's adapter lies."""
        return self.out / "baselines" / name / f"seed-{seed}"

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(PartialState(cpu=self.device == "cpu").num_processes)

    @property
    def main(self) -> bool:
        """Whether this process tells and measures."""
        return bool(PartialState(cpu=self.device == "cpu").is_main_process)

    def told(self) -> Call:
        """Return the same, silent in all processes but the main one."""
        if self.main:
            return self
        return replace(self, echo=lambda _: None, progress=lambda *_: nullcontext(lambda _: None))


def train_dual_prompt(
    call: Call, data: CaptionData, plan: dual_prompt.Plan, recipe: Recipe, validation: int | None
) -> dict[str, Any]:
    """Train retrievers, compare them, and write report.json, report.md and report.html; returns the report."""
    call = call.told()
    learnt, held_out = data.parted()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images[:validation])) as advance:
        pictures = dual_prompt.Pictures.read(data, plan.clip, validation=validation, advance=advance)
    _skipped(call, pictures.pixels)
    trained = _fitted(call, dual_prompt.fit, plan, pictures, recipe, call.folders)
    baselines: dict[str, list[Any]] = {}
    if call.compare:
        for name in BASELINES:
            folders = [call.baseline(name, seed) for seed in call.seeds]
            same = replace(PRESETS[name].plan, clip=plan.clip)
            baselines[name] = _fitted(call, dual_prompt.fit, same, pictures, recipe, folders, f" {name}")
    report = _report(call, "train dual-prompt", "dual-prompt", data, plan.to_dict(), recipe)
    report["measures"] = ["i2t_r1", "t2i_r1", "auroc"]
    report["lead"] = "A CLIP that tells categories, colours and numbers apart, by prompts in both of its encoders."
    if call.compare and call.main:
        report |= _compare_retrieval(call, data, plan, trained, baselines, pictures)
    return _write(call, report)


def train_claims(
    call: Call, data: CaptionData, chosen: Mapping[str, tuple[dual_prompt.Plan, Recipe]], validation: int | None
) -> dict[str, Any]:
    """Train presets for claims on the same data, each in its folder, and put them in one table; returns the report.

    Args:
        chosen: preset -> what is trained and how; all on one CLIP. The first is the one that others are compared with.
        validation: most pictures that candidates are measured on; None for all.
    """
    call = call.told()
    learnt, held_out = data.parted()
    (ours, (plan, recipe)), *_ = chosen.items()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images[:validation])) as advance:
        pictures = dual_prompt.Pictures.read(
            data, plan.clip, validation=validation, withheld=plan.withheld, advance=advance
        )
    _skipped(call, pictures.pixels)
    folders = {name: adapter_folders(call.out / name, call.seeds) for name in chosen}
    trained = {
        name: _fitted(call, dual_prompt.fit, own, pictures, how, folders[name], f" {name}")
        for name, (own, how) in chosen.items()
    }
    report = _report(call, "train claims", ours, data, plan.to_dict(), recipe)
    report |= {
        "adapters": [str(folder) for each in folders.values() for folder in each],
        "presets": {name: {"plan": own.to_dict(), "recipe": how.to_dict()} for name, (own, how) in chosen.items()},
        "measures": ["score", "claims", "t2i_r1", "auroc"],
        "lead": "A CLIP that judges whether a claim holds of a picture.",
    }
    if call.compare and call.main:
        report |= _compare_claims(call, data, plan, trained, folders, pictures)
    return _write(call, report, [folder for each in folders.values() for folder in each])


def _compare_claims(
    call: Call,
    data: CaptionData,
    plan: dual_prompt.Plan,
    trained: Mapping[str, Sequence[Any]],
    folders: Mapping[str, Sequence[Path]],
    pictures: dual_prompt.Pictures,
) -> dict[str, Any]:
    ours = next(iter(trained))
    plain, gallery, pixels = _tested(call, data, plan, pictures)
    learnt = pictures.train
    known = known_of(learnt, pictures.bank)
    probe = of_retrieval.best_probe(
        pictures.frozen(learnt.images),
        Claims.of([known(image) for image in learnt.images], without=plan.withheld),
        pictures.gallery.searched(plain, pictures.pixels),
    )

    def judged(gallery: Gallery, pixels: Features, task: str) -> list[dict[str, Any]]:
        found = {name: [gallery.searched(one, pixels) for one in each] for name, each in trained.items()}
        found["clip"] = [gallery.searched(plain, pixels)] * len(call.seeds)
        found[of_retrieval.PROBE] = [probe(found["clip"][0])] * len(call.seeds)
        novel = np.isin(gallery.claims.names, plan.withheld)
        more = of_retrieval.of_claims(novel)
        return of_retrieval.rows_of(plan.clip, ours, found, more=more, task=task, baseline="clip")

    rows = judged(gallery, pixels, of_retrieval.TASK)
    if data.store.describe() == dual_prompt.WORLD:
        try:
            real = _read(call, world.captions("test_real", call.pictures), pictures.bank, plain)
            rows += judged(*real, of_retrieval.REAL)
        except GuardError as error:
            call.echo(f"Left out: {error}")
    # where training helped none on validation, the untuned CLIP's figures stand in the row
    for figure in ("kept", "parameters", "seconds"):
        for name in (*trained, "clip"):
            notes = [read_json(folder / TRAINING / DONE) for folder in folders.get(name, ())]
            told = [float(note["kept"] != UNTUNED if figure == "kept" else note[figure]) for note in notes] or [0.0]
            ends = float(np.mean(told)), min(told), max(told)
            rows.append(of_retrieval.row(plan.clip, name, "training", figure, ends, len(told)))
    return {
        "rows": rows,
        "withheld": list(plan.withheld),
        "gallery": {"pictures": len(gallery.images), "captions": len(gallery.rows), "swaps": len(gallery.swaps)},
    }


def _fitted(
    call: Call, fit: Any, plan: Any, pictures: Any, recipe: Recipe, folders: Sequence[Path], what: str = ""
) -> list[Any]:
    """Return what a training gives for each seed, each in its folder."""
    trained = []
    for seed, folder in zip(call.seeds, folders, strict=True):
        with call.progress(f"training{what}, seed {seed}", recipe.steps) as advance:
            own = replace(recipe, seed=seed)
            trained.append(
                fit(
                    plan,
                    pictures,
                    own,
                    folder,
                    advance,
                    device=call.device,
                    workers=call.workers,
                    report_to=call.report_to,
                )
            )
    return trained


def _compare_retrieval(
    call: Call,
    data: CaptionData,
    plan: dual_prompt.Plan,
    trained: Sequence[Any],
    baselines: Mapping[str, Sequence[Any]],
    pictures: dual_prompt.Pictures,
) -> dict[str, Any]:
    plain, gallery, pixels = _tested(call, data, plan, pictures)
    found: dict[str, list[Searched]] = {"dual-prompt": [gallery.searched(one, pixels) for one in trained]}
    found["clip"] = [gallery.searched(plain, pixels)] * len(call.seeds)
    found |= {name: [gallery.searched(one, pixels) for one in each] for name, each in baselines.items()}
    told = of_retrieval.rows_of(plan.clip, "dual-prompt", found)
    return {
        "rows": told,
        "by_category": {name: of_retrieval.by_category(each) for name, each in found.items()},
        "weighting": "none: captions without word weights, one feature each",
        "gallery": {"pictures": len(gallery.images), "captions": len(gallery.rows), "swaps": len(gallery.swaps)},
    }


def _tested(
    call: Call, data: CaptionData, plan: dual_prompt.Plan, pictures: dual_prompt.Pictures
) -> tuple[Any, Gallery, Features]:
    """Return CLIP as it is, calibrated and saved, and the gallery of the test part with its pixels."""
    plain = untuned(plan.clip, configuration="clip")
    dual_prompt.calibrate(plain, pictures.gallery, pictures.pixels)
    plain.save_pretrained(call.out / "baselines" / "clip")
    return plain, *_read(call, data.part("test"), pictures.bank, plain)


def _read(call: Call, part: CaptionData, bank: WordBank, plain: Any) -> tuple[Gallery, Features]:
    keys = part.images[: call.pictures]
    with call.progress("reading test pictures", len(keys)) as advance:
        pixels = Features(keys, part.load, plain.image_inputs, advance)
    gone = {bad.image for bad in pixels.bad}
    rows = [row for row in part.rows if row.image in set(keys) - gone]
    return Gallery.of(part.with_rows(rows), bank), pixels


def train_ranker(call: Call, data: RankData, plan: ranker.Plan, recipe: Recipe) -> dict[str, Any]:
    """Train rankers, compare them, and write report.json, report.md and report.html; returns the report."""
    call = call.told()
    learnt, held_out = data.parted()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images)) as advance:
        pictures = ranker.Pictures.read(data, plan, advance=advance)
    _skipped(call, pictures.seen)
    trained = _fitted(call, ranker.fit, plan, pictures, recipe, call.folders)
    report = _report(call, "train ranker", "ranker", data, plan.to_dict(), recipe)
    report["measures"] = ["srcc", "accuracy", "absence_auroc"]
    report["lead"] = "A CLIP that orders pictures by how much of something they show, and can say that there is none."
    if call.compare and call.main:
        report |= _compare_ranking(call, data, plan, trained, pictures, recipe)
    return _write(call, report)


def _compare_ranking(
    call: Call, data: RankData, plan: ranker.Plan, trained: Sequence[Any], pictures: ranker.Pictures, recipe: Recipe
) -> dict[str, Any]:
    part = data.part("test")
    keys = part.images[: call.pictures]
    first = trained[0]
    with call.progress("reading test pictures", len(keys)) as advance:
        seen = Features(keys, part.load, ranker.encoder(first, plan.trunk), advance)
    gone = {bad.image for bad in seen.bad}
    kept = set(keys) - gone
    lists = Lists.of(part.with_rows([row for row in part.rows if row.image in kept]))
    scored = [RankingTask(one, pictures.train, lists, seen, recipe, plan.negatives).scored(lists) for one in trained]
    plain = untuned(plan.clip)
    encoder = Encoder(plain.model)
    fitted = Lists.of(pictures.train)
    wanted = list(dict.fromkeys([*fitted.images, *pictures.lists.images, *lists.images]))
    with call.progress("features for the baselines", len(wanted)) as advance:
        pooled = Features(wanted, data.load, lambda images: encoder.images(plain.image_inputs(images)), advance)
    tokens = {id(pictures): pictures.seen, id(lists): seen}

    def probed(keys: Sequence[str]) -> Tensor:
        """Pooled features and the mean of the tokens: all that a line can be drawn through."""
        if plan.trunk != "frozen":
            return pooled(keys)
        own = tokens[id(lists)] if keys[0] in kept else tokens[id(pictures)]
        return torch.cat([pooled(keys), own(keys).mean(1)], -1)

    found = {
        "ranker": scored,
        "clip": [
            of_rankings.zero_shot(lists, fitted, pooled, plain.text_features, plain.model.tau)
        ] * len(trained),
        "linear-probe": [of_rankings.linear_probe(lists, fitted, pictures.lists, probed)] * len(trained),
    }  # fmt: skip
    return {
        "rows": of_rankings.rows_of(plan.clip, "ranker", lists, found),
        "by_object": {name: of_rankings.by_object(lists, each) for name, each in found.items()},
        "lists": {name: len(values) for name, values in lists.values.items()},
    }


def _skipped(call: Call, features: Features) -> None:
    if features.bad:
        call.echo(f"{len(features.bad)} pictures can't be read and were skipped, {features.bad[0].image} for one.")


def _report(call: Call, command: str, method: str, data: Any, plan: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    return {
        "command": command,
        "version": lvlm_guard.__version__,
        "call": call.line,
        "environment": dict(call.environment),
        "method": method,
        "data": data.name,
        "plan": plan,
        "recipe": recipe.to_dict(),
        "seeds": list(call.seeds),
        "adapters": [str(folder) for folder in call.folders],
        "rows": [],
    }


def _write(call: Call, report: dict[str, Any], folders: Sequence[Path] | None = None) -> dict[str, Any]:
    state = PartialState()
    if call.main:
        folders = call.folders if folders is None else folders
        notes = [read_json(folder / TRAINING / DONE) or {} for folder in folders]
        report["kept"] = [{key: note.get(key) for key in ("kept", "averaged", "figures", "found")} for note in notes]
        report = json.loads(json.dumps(report, default=str))
        write_json(call.out / "report.json", report)
        lead = f"{report['call']}\n\nSeeds {report['seeds']}, {report['environment'].get('machine', '')}."
        if report["rows"]:
            (call.out / "report.md").write_text(markdown(report["rows"], lead), encoding="utf-8")
        curves = {
            _named(call, folder): [json.loads(line) for line in (folder / TRAINING / CURVE).read_text().splitlines()]
            for folder in folders
        }
        write_report(call.out, report, curves)
    state.wait_for_everyone()
    return report


def _named(call: Call, folder: Path) -> str:
    where = folder.relative_to(call.out).as_posix()
    return f"Seed {call.seeds[0]}" if where == "." else where.replace("seed-", "seed ").capitalize()
