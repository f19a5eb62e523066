"""What `lvlm-guard train dual-prompt`, `claims` and `ranker` do: trainings for several seeds, then all compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_guard.adapters.data import CaptionData, RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.evaluation import ranking as of_rankings
from lvlm_guard.adapters.evaluation import retrieval as of_retrieval
from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import UNTUNED, row
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.presets import BASELINES, PRESETS
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.free import objects
from lvlm_guard.adapters.training.recipe import CURVE, DONE, TRAINING, Call, Recipe
from lvlm_guard.adapters.training.retrieval import calibrate
from lvlm_guard.adapters.training.trainer import VALIDATION
from lvlm_guard.errors import GuardError
from lvlm_guard.files import read_json, write_json
from lvlm_guard.report import Html, comparison_section, line_plot, markdown, page, section, tag, write_page

PROMPTS = "dual-prompt"
SAID = {
    PROMPTS: "A CLIP that tells categories, colours and numbers apart, by prompts in both of its encoders.",
    "claims": "A CLIP that judges whether a claim holds of a picture.",
    "ranker": "A CLIP that orders pictures by how much of something they show, and can say that there is none.",
}
MEASURES = {
    PROMPTS: ["i2t_r1", "t2i_r1", "auroc"],
    "claims": ["score", "claims", "t2i_r1", "auroc"],
    "ranker": ["srcc", "accuracy", "absence_auroc"],
}
Chosen = Mapping[str, tuple[dual_prompt.Plan, Recipe]]
"""Method -> what is trained and how; all on one CLIP. The first is the one that others are compared with."""


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
    _begun(call, pictures.pixels)
    claims = ours != PROMPTS
    folders = {name: call.folders(name if claims else "") for name in chosen}
    own = [folder for each in folders.values() for folder in each]
    told: dict[str, Any] = {"method": ours}
    if claims:
        told["presets"] = {name: {"plan": asdict(one), "recipe": asdict(how)} for name, (one, how) in chosen.items()}
    elif call.compare:
        chosen = {**chosen, **{name: (replace(PRESETS[name].plan, clip=plan.clip), recipe) for name in BASELINES}}
        folders |= {
            name: tuple(call.out / "baselines" / name / f"seed-{seed}" for seed in call.seeds) for name in BASELINES
        }
    trained = {
        name: _fitted(
            call, partial(dual_prompt.fit, one, pictures), how, folders[name], "" if name == PROMPTS else f" {name}"
        )
        for name, (one, how) in chosen.items()
    }
    if call.compare and call.main:
        told |= _compare_retrievers(call, data, plan, trained, folders if claims else None, pictures)
    return _write(call, "claims" if claims else PROMPTS, data, plan, recipe, own, told)


def _compare_retrievers(
    call: Call,
    data: CaptionData,
    plan: dual_prompt.Plan,
    trained: Mapping[str, Sequence[DualPromptRetriever]],
    notes: Mapping[str, Sequence[Path]] | None,
    pictures: dual_prompt.Pictures,
) -> dict[str, Any]:
    """Return rows on the test part; with the folders of notes, those of claims and of the trainings too."""
    ours, many = next(iter(trained)), len(call.seeds)
    clip = untuned(plan.clip, configuration="clip")
    calibrate(clip, pictures.gallery, pictures.pixels)
    clip.save_pretrained(call.out / "baselines" / "clip")

    def tested(part: CaptionData) -> dict[str, list[Searched]]:
        pixels, part = _seen(call, "reading test pictures", part, clip.image_inputs)
        gallery = Gallery.of(part, pictures.bank)
        found = {name: [gallery.searched(one, pixels) for one in each] for name, each in trained.items()}
        return found | {"clip": [gallery.searched(clip, pixels)] * many}

    found = tested(data.part("test"))
    gallery = found[ours][0].gallery
    told: dict[str, Any] = {
        "gallery": {"pictures": len(gallery.images), "captions": len(gallery.rows), "swaps": len(gallery.swaps)}
    }
    if notes is None:
        told["rows"] = of_retrieval.rows_of(plan.clip, ours, found)
        told["by_category"] = {name: of_retrieval.by_category(each) for name, each in found.items()}
        return told | {"weighting": "none: captions without word weights, one feature each"}
    features, validated = pictures.frozen(pictures.train.images), pictures.gallery.searched(clip, pictures.pixels)
    probe = of_retrieval.best_probe(features, objects(plan, pictures), validated)

    def judged(found: dict[str, list[Searched]], task: str) -> list[dict[str, Any]]:
        found = found | {of_retrieval.PROBE: [probe(found["clip"][0])] * many}
        novel = np.isin(found[ours][0].gallery.claims.names, plan.withheld)
        return of_retrieval.rows_of(plan.clip, ours, found, novel=novel, task=task, baseline="clip")

    told |= {"rows": judged(found, of_retrieval.TASK), "withheld": list(plan.withheld)}
    if str(data.store) == dual_prompt.WORLD:
        try:
            real = world_facts("captions", "test_real", call.pictures)
            told["rows"] += judged(tested(real.captions), of_retrieval.REAL)
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


def train_ranker(call: Call, data: RankData, plan: ranker.Plan, recipe: Recipe) -> dict[str, Any]:
    """Train rankers, compare them, and write report.json, report.md and report.html; returns the report."""
    call = call.told()
    clip = untuned(plan.clip) if call.compare else None  # what can't be compared is said before anything is trained
    learnt, held_out = data.parted()
    with call.progress("reading pictures", len(learnt.images) + len(held_out.images)) as advance:
        pictures = ranker.Pictures.read(data, plan, advance=advance)
    _begun(call, pictures.seen)
    folders = call.folders()
    trained = _fitted(call, partial(ranker.fit, plan, pictures), recipe, folders)
    told: dict[str, Any] = {"method": "ranker"}
    if clip is not None and call.main:
        told |= _compare_rankers(call, data, plan, clip, trained, pictures)
    return _write(call, "ranker", data, plan, recipe, folders, told)


def _compare_rankers(
    call: Call,
    data: RankData,
    plan: ranker.Plan,
    clip: DualPromptRetriever,
    trained: Sequence[Any],
    pictures: ranker.Pictures,
) -> dict[str, Any]:
    seen, part = _seen(call, "reading test pictures", data.part("test"), ranker.encoder(trained[0], plan.trunk))
    lists, fitted = Lists.of(part), Lists.of(pictures.train)
    wanted = list(dict.fromkeys([*fitted.images, *pictures.lists.images, *lists.images]))

    with call.progress("features for the baselines", len(wanted)) as advance:
        pooled = Features(wanted, data.load, clip.image_features, advance)

    def probed(keys: Sequence[str]) -> Tensor:
        """Pooled features and the mean of the tokens: all that a line can be drawn through."""
        if plan.trunk != "frozen":
            return pooled(keys)
        own = seen if keys[0] in part.images else pictures.seen
        return torch.cat([pooled(keys), own(keys).mean(1)], -1)

    untrained = {
        "clip": of_rankings.zero_shot(lists, fitted, pooled, clip.text_features, clip.model.tau),
        "linear-probe": of_rankings.linear_probe(lists, fitted, pictures.lists, probed),
    }
    found = {"ranker": [ranker.scored(one, lists, seen) for one in trained]}
    found |= {name: [one] * len(trained) for name, one in untrained.items()}
    return {
        "rows": of_rankings.rows_of(plan.clip, "ranker", lists, found),
        "by_object": {name: of_rankings.by_object(lists, each) for name, each in found.items()},
        "lists": {name: len(values) for name, values in lists.values.items()},
    }


def _begun(call: Call, features: Features) -> None:
    if bad := features.bad:
        call.echo(f"{len(bad)} pictures can't be read and were skipped, {bad[0].image} for one.")
    if call.start_over:
        call.clear()


def _fitted(call: Call, fit: Callable[..., Any], recipe: Recipe, folders: Sequence[Path], what: str = "") -> list[Any]:
    """Return what a training gives for each seed, each in its folder."""
    how = {"device": call.device, "dataloader_num_workers": call.workers, "report_to": call.report_to}
    trained = []
    for seed, folder in zip(call.seeds, folders, strict=True):
        with call.progress(f"training{what}, seed {seed}", recipe.steps) as advance:
            trained.append(fit(replace(recipe, seed=seed), folder, advance, **how))
    return trained


def _seen(call: Call, what: str, part: Any, encode: Any) -> tuple[Features, Any]:
    """Return features of the first pictures of a part, and their rows as far as they can be read."""
    keys = part.images[: call.pictures]
    with call.progress(what, len(keys)) as advance:
        features = Features(keys, part.load, encode, advance)
    kept = set(keys) - {bad.image for bad in features.bad}
    return features, part.with_rows([row for row in part.rows if row.image in kept])


def _write(
    call: Call, command: str, data: Any, plan: Any, recipe: Recipe, folders: Sequence[Path], told: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a report as JSON, as a table and as a page, in the main process; returns it."""
    report = call.report(command, folders, recipe, data=data.name, plan=asdict(plan), **told)
    report |= {"measures": MEASURES[command], "lead": SAID[command]}
    if call.main:
        notes = [read_json(folder / TRAINING / DONE) or {} for folder in folders]
        report["kept"] = [{key: note.get(key) for key in ("kept", "averaged", "figures", "found")} for note in notes]
        write_json(call.out / "report.json", report)
        if report["rows"]:
            lead = f"{call.line}\n\nSeeds {list(call.seeds)}, {call.environment.get('machine', '')}."
            (call.out / "report.md").write_text(markdown(report["rows"], lead), encoding="utf-8")
        _write_page(call, report, folders)
    call.state.wait_for_everyone()
    return report


def _write_page(call: Call, report: Mapping[str, Any], folders: Sequence[Path]) -> None:
    rows, many = report["rows"], len(call.seeds)
    lead = f"Means over {many} trainings; 95 % intervals by bootstrap over pictures and trainings."
    parts = [
        comparison_section(rows, task, report["method"], lead) for task in dict.fromkeys(row["task"] for row in rows)
    ]
    for folder in folders:
        where = folder.relative_to(call.out).as_posix()
        name = f"Seed {call.seeds[0]}" if where == "." else where.replace("seed-", "seed ").capitalize()
        lines = (folder / TRAINING / CURVE).read_text(encoding="utf-8").splitlines()
        parts.append(_curves(name, [json.loads(line) for line in lines], report["measures"]))
    settings = {key: report[key] for key in ("plan", "recipe", "data", "seeds", "kept", "environment")}
    parts.append(section("Settings", tag("pre", json.dumps(settings, indent=1, default=str))))
    foot = f"lvlm-guard {report['version']}: {call.line}"
    made = page(f"Training: {report['method']}", *parts, lead=report["lead"], foot=foot)
    write_page(call.out / "report.html", made)


def _curves(name: str, curve: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Html:
    def points(key: str) -> list[tuple[float, float]]:
        return [(float(entry["step"]), float(entry[key])) for entry in curve if entry.get(key) is not None]

    plots = {"Training loss": {"loss": points("loss")}, "On validation": {m: points(VALIDATION + m) for m in measures}}
    drawn = [line_plot(lines, title=title, axis="step") for title, lines in plots.items() if any(lines.values())]
    return section(name, *drawn)
