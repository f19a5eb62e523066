"""What `lvlm-guard train dual-prompt`, `claims` and `ranker` do: trainings for several seeds, then all compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

import lvlm_guard
from lvlm_guard.adapters.data import CaptionData, RankData, world
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation import ranking as of_rankings
from lvlm_guard.adapters.evaluation import retrieval as of_retrieval
from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import UNTUNED, row
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.presets import BASELINES, PRESETS
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, known_of
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.curves import write_report
from lvlm_guard.adapters.training.ranking import RankingTask
from lvlm_guard.adapters.training.recipe import (
    BEGUN,
    CURVE,
    DONE,
    TRAINING,
    Recipe,
    adapter_folders,
    read_json,
    write_json,
)
from lvlm_guard.errors import GuardError
from lvlm_guard.report import markdown

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
Chosen = Mapping[str, tuple[dual_prompt.Plan, Recipe]]
"""Method -> what is trained and how; all on one CLIP. The first is the one that others are compared with."""

PROMPTS = "dual-prompt"


@dataclass(frozen=True)
class Call:
    """How a command was asked.

    Args:
        out: folder; the same call goes on there.
        seeds: of trainings, an adapter each.
        compare: whether all are measured on the test part, beside baselines.
        device: "cpu", or "auto".
        workers: processes that read pictures.
        report_to: trackers that are told of losses and measurements, as `transformers` names them.
        start_over: drop what an earlier call left in the folder.
        pictures: most of the test part that are measured on; None for all.
        echo: told what happens, a line at a time.
        progress: opens a progress bar.
        line: the command as it was typed.
        environment: where it runs.

    Raises:
        TrainingError: there is no seed, or one twice.
    """

    out: Path
    seeds: Sequence[int]
    compare: bool
    device: str
    workers: int
    report_to: str
    start_over: bool
    pictures: int | None
    echo: Callable[[str], object]
    progress: Progress
    line: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise TrainingError(f"seeds are {list(self.seeds)}: give one or more different numbers.")
        if self.start_over and self.main:
            for depth in ("", "*/", "*/*/", "baselines/*/*/"):
                for place in self.out.glob(f"{depth}{TRAINING}"):
                    if any((place / mark).exists() for mark in (BEGUN, DONE)):  # no folder of another's so called
                        shutil.rmtree(place, ignore_errors=True)

    def folders(self, below: str = "") -> tuple[Path, ...]:
        """Return where the adapters lie."""
        return adapter_folders(self.out / below, self.seeds)

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

    def fitted(
        self, fit: Callable[..., Any], plan: Any, pictures: Any, recipe: Recipe, folders: Sequence[Path], what: str = ""
    ) -> list[Any]:
        """Return what a training gives for each seed, each in its folder."""
        how = {"device": self.device, "workers": self.workers, "report_to": self.report_to}
        trained = []
        for seed, folder in zip(self.seeds, folders, strict=True):
            with self.progress(f"training{what}, seed {seed}", recipe.steps) as advance:
                trained.append(fit(plan, pictures, replace(recipe, seed=seed), folder, advance, **how))
        return trained

    def features(self, what: str, keys: Sequence[str], load: Any, encode: Any) -> Features:
        """Return features of pictures, and show how far they are."""
        with self.progress(what, len(keys)) as advance:
            return Features(keys, load, encode, advance)

    def skipped(self, features: Features) -> None:
        """Tell how many pictures can't be read."""
        if bad := features.bad:
            self.echo(f"{len(bad)} pictures can't be read and were skipped, {bad[0].image} for one.")


def train_retrievers(call: Call, data: CaptionData, chosen: Chosen, validation: int | None) -> dict[str, Any]:
    """Train retrievers on the same data, compare them, and write report.json, .md and .html; returns the report.

    Args:
        chosen: "dual-prompt", which is compared with baselines that are trained beside it; or presets for claims, each
            in its own folder, in one table.
        validation: most pictures that candidates are measured on; None for all.
    """
    call = call.told()
    learnt, held_out = data.parted()
    (ours, (plan, recipe)), *_ = chosen.items()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images[:validation])) as advance:
        pictures = dual_prompt.Pictures.read(
            data, plan.clip, validation=validation, withheld=plan.withheld, advance=advance
        )
    call.skipped(pictures.pixels)
    claims = ours != PROMPTS
    folders = {name: call.folders(name if claims else "") for name in chosen}
    own = [folder for each in folders.values() for folder in each]
    report = _report(call, "claims" if claims else PROMPTS, ours, data, plan, recipe, own)
    if claims:
        report["measures"] = ["score", "claims", "t2i_r1", "auroc"]
        report["lead"] = "A CLIP that judges whether a claim holds of a picture."
        report["presets"] = {name: {"plan": asdict(one), "recipe": asdict(how)} for name, (one, how) in chosen.items()}
    else:
        report["measures"] = ["i2t_r1", "t2i_r1", "auroc"]
        report["lead"] = "A CLIP that tells categories, colours and numbers apart, by prompts in both of its encoders."
        if call.compare:
            chosen = {**chosen, **{name: (replace(PRESETS[name].plan, clip=plan.clip), recipe) for name in BASELINES}}
            folders |= {
                name: tuple(call.out / "baselines" / name / f"seed-{seed}" for seed in call.seeds) for name in BASELINES
            }
    trained = {
        name: call.fitted(dual_prompt.fit, one, pictures, how, folders[name], "" if name == PROMPTS else f" {name}")
        for name, (one, how) in chosen.items()
    }
    if call.compare and call.main:
        report |= _compare_retrievers(call, data, plan, trained, folders if claims else None, pictures)
    return _write(call, report, own)


def _compare_retrievers(
    call: Call,
    data: CaptionData,
    plan: dual_prompt.Plan,
    trained: Mapping[str, Sequence[Any]],
    notes: Mapping[str, Sequence[Path]] | None,
    pictures: dual_prompt.Pictures,
) -> dict[str, Any]:
    """Return rows on the test part; with the folders of notes, those of claims and of the trainings too."""
    ours = next(iter(trained))
    plain = untuned(plan.clip, configuration="clip")
    dual_prompt.calibrate(plain, pictures.gallery, pictures.pixels)
    plain.save_pretrained(call.out / "baselines" / "clip")
    gallery, pixels = _tested(call, data.part("test"), pictures.bank, plain)

    def searched(gallery: Gallery, pixels: Features) -> dict[str, list[Searched]]:
        found = {name: [gallery.searched(one, pixels) for one in each] for name, each in trained.items()}
        return found | {"clip": [gallery.searched(plain, pixels)] * len(call.seeds)}

    told: dict[str, Any] = {
        "gallery": {"pictures": len(gallery.images), "captions": len(gallery.rows), "swaps": len(gallery.swaps)}
    }
    if notes is None:
        found = searched(gallery, pixels)
        told["rows"] = of_retrieval.rows_of(plan.clip, ours, found)
        told["by_category"] = {name: of_retrieval.by_category(each) for name, each in found.items()}
        return told | {"weighting": "none: captions without word weights, one feature each"}
    learnt = pictures.train
    known = known_of(learnt, pictures.bank)
    probe = of_retrieval.best_probe(
        pictures.frozen(learnt.images),
        Claims.of([known(image) for image in learnt.images], without=plan.withheld),
        pictures.gallery.searched(plain, pictures.pixels),
    )

    def judged(gallery: Gallery, pixels: Features, task: str) -> list[dict[str, Any]]:
        found = searched(gallery, pixels)
        found[of_retrieval.PROBE] = [probe(found["clip"][0])] * len(call.seeds)
        more = of_retrieval.of_claims(np.isin(gallery.claims.names, plan.withheld))
        return of_retrieval.rows_of(plan.clip, ours, found, more=more, task=task, baseline="clip")

    told |= {"rows": judged(gallery, pixels, of_retrieval.TASK), "withheld": list(plan.withheld)}
    if data.store.describe() == dual_prompt.WORLD:
        try:
            real = _tested(call, world.captions("test_real", call.pictures), pictures.bank, plain)
            told["rows"] += judged(*real, of_retrieval.REAL)
        except GuardError as error:
            call.echo(f"Left out: {error}")
    # where training helped none on validation, the untuned CLIP's figures stand in the row
    for figure in ("kept", "parameters", "seconds"):
        for name in (*trained, "clip"):
            noted = [read_json(folder / TRAINING / DONE) for folder in notes.get(name, ())]
            values = [float(note["kept"] != UNTUNED if figure == "kept" else note[figure]) for note in noted] or [0.0]
            ends = float(np.mean(values)), min(values), max(values)
            told["rows"].append(row(plan.clip, name, "training", figure, ends, len(values)))
    return told


def _tested(call: Call, part: CaptionData, bank: WordBank, plain: Any) -> tuple[Gallery, Features]:
    """Return the gallery of a part, and its pixels."""
    keys = part.images[: call.pictures]
    pixels = call.features("reading test pictures", keys, part.load, plain.image_inputs)
    kept = set(keys) - {bad.image for bad in pixels.bad}
    return Gallery.of(part.with_rows([row for row in part.rows if row.image in kept]), bank), pixels


def train_ranker(call: Call, data: RankData, plan: ranker.Plan, recipe: Recipe) -> dict[str, Any]:
    """Train rankers, compare them, and write report.json, report.md and report.html; returns the report."""
    call = call.told()
    plain = untuned(plan.clip) if call.compare else None  # what can't be compared is said before anything is trained
    learnt, held_out = data.parted()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images)) as advance:
        pictures = ranker.Pictures.read(data, plan, advance=advance)
    call.skipped(pictures.seen)
    folders = call.folders()
    trained = call.fitted(ranker.fit, plan, pictures, recipe, folders)
    report = _report(call, "ranker", "ranker", data, plan, recipe, folders)
    report["measures"] = ["srcc", "accuracy", "absence_auroc"]
    report["lead"] = "A CLIP that orders pictures by how much of something they show, and can say that there is none."
    if plain is not None and call.main:
        report |= _compare_rankers(call, data, plan, plain, trained, pictures, recipe)
    return _write(call, report, folders)


def _compare_rankers(
    call: Call,
    data: RankData,
    plan: ranker.Plan,
    plain: DualPromptRetriever,
    trained: Sequence[Any],
    pictures: ranker.Pictures,
    recipe: Recipe,
) -> dict[str, Any]:
    part = data.part("test")
    keys = part.images[: call.pictures]
    seen = call.features("reading test pictures", keys, part.load, ranker.encoder(trained[0], plan.trunk))
    kept = set(keys) - {bad.image for bad in seen.bad}
    lists = Lists.of(part.with_rows([row for row in part.rows if row.image in kept]))
    scored = [RankingTask(one, pictures.train, lists, seen, recipe, plan.negatives).scored(lists) for one in trained]
    fitted = Lists.of(pictures.train)
    wanted = list(dict.fromkeys([*fitted.images, *pictures.lists.images, *lists.images]))

    def encoded(images: Any) -> Tensor:
        return plain.image_features(images)

    pooled = call.features("features for the baselines", wanted, data.load, encoded)

    def probed(keys: Sequence[str]) -> Tensor:
        """Pooled features and the mean of the tokens: all that a line can be drawn through."""
        if plan.trunk != "frozen":
            return pooled(keys)
        own = seen if keys[0] in kept else pictures.seen
        return torch.cat([pooled(keys), own(keys).mean(1)], -1)

    untrained = {
        "clip": of_rankings.zero_shot(lists, fitted, pooled, plain.text_features, plain.model.tau),
        "linear-probe": of_rankings.linear_probe(lists, fitted, pictures.lists, probed),
    }
    found = {"ranker": scored, **{name: [one] * len(trained) for name, one in untrained.items()}}
    return {
        "rows": of_rankings.rows_of(plan.clip, "ranker", lists, found),
        "by_object": {name: of_rankings.by_object(lists, each) for name, each in found.items()},
        "lists": {name: len(values) for name, values in lists.values.items()},
    }


def _report(
    call: Call, command: str, method: str, data: Any, plan: Any, recipe: Recipe, folders: Sequence[Path]
) -> dict[str, Any]:
    return {
        "command": f"train {command}",
        "version": lvlm_guard.__version__,
        "call": call.line,
        "environment": dict(call.environment),
        "method": method,
        "data": data.name,
        "plan": asdict(plan),
        "recipe": asdict(recipe),
        "seeds": list(call.seeds),
        "adapters": [str(folder) for folder in folders],
        "rows": [],
    }


def _write(call: Call, report: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    if call.main:
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
    PartialState().wait_for_everyone()
    return report


def _named(call: Call, folder: Path) -> str:
    where = folder.relative_to(call.out).as_posix()
    return f"Seed {call.seeds[0]}" if where == "." else where.replace("seed-", "seed ").capitalize()
