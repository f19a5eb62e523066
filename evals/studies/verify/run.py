"""Descriptions, verdicts, report: all of `lvlm-guard eval verify`, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import lvlm_guard
from lvlm_guard.evals.decoders.decoder import REFERENCE, Decoder
from lvlm_guard.evals.decoders.matchers import check_matchers, load_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.identity import environment
from lvlm_guard.evals.infer.prepare import where_of
from lvlm_guard.evals.infer.ranks import one_thread
from lvlm_guard.evals.infer.store import ANSWERS
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.bootstrap import DRAWS
from lvlm_guard.evals.studies.verify.asking import COMMAND, Asking, Judged
from lvlm_guard.evals.studies.verify.judges import ClipJudge, MatcherJudge
from lvlm_guard.evals.studies.verify.mentions import Mention, describe, mention_task, mentions_of, pieces_of
from lvlm_guard.evals.studies.verify.report import remarks, write_report
from lvlm_guard.evals.studies.verify.rows import check_names, reliabilities, results_of, table_of_all, verifiers_of
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.pretrained import load_model


def verify_run(
    settings: Settings,
    out: str | Path,
    clip: str = "clip",
    *,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    started_over: bool = False,
    line: str = "",
) -> dict[str, Any]:
    """Let the model describe pictures, ask every verifier about each object named, and write the report.

    Descriptions and verdicts go to folders in `out` as they come; the same call goes on where it stopped, and one with
    further matchers asks these alone.

    Args:
        settings: the model, one task of captions, and matchers: name -> names, folders or hub ids for `load_matcher`,
            one for each training seed.
        out: folder of answers.parquet (one row a verifier and mention), report.json and report.html.
        clip: the untuned CLIP that the baselines stand on.
        echo, bar, started_over: as `infer.ask.ask`'s.
        line: the command as it was typed.

    Returns:
        what report.json holds.

    Raises:
        DataError: the task is no task of captions, nothing is named, there is nothing to tell apart, or answers in the
            folder were made by others.
        WeightsError, UnknownNameError: the model or a matcher can't be had.
        KnobError: trainings of one name are of different matchers, or the same.
        UnsupportedCallError: a matcher can't judge claims.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    folder = Path(out)
    check_names(settings.matchers)
    check_matchers(settings.matchers)
    with one_thread(settings.model == EMBEDDED):
        tasks = tasks_of(settings)
        if [task.kind for task in tasks] != ["chair"]:
            raise DataError(
                f"{', '.join(settings.tasks)} is not one task of captions whose objects are known: give world_chair "
                "(the embedded world) or chair (COCO, with --images and --annotations)."
            )
        task = tasks[0]
        model, processor = load_model(
            settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision or None
        )
        judges = _judges(settings, clip, model, Vocabulary.of(task.vocabulary))
        ask = Asking(folder, replace(settings, matchers={}), where_of(model), echo, bar, started_over)
        plain = Decoder(REFERENCE, "plain, greedy", None, role="reference", baseline=None)
        try:
            told = partial(describe, model, processor, task)
            said = ask("descriptions", task, [plain], REFERENCE, lambda items: {REFERENCE: told(items)})
            described = zip(said["text"].to_pylist(), map(pieces_of, said["proof"].to_pylist()), strict=True)
            mentions = mentions_of(task, list(described))
            named = mention_task(task, mentions)
            judged = [one.asked(ask, named) for one in judges] if named.items else []
        except KeyboardInterrupt:
            echo(f"Stopped. The answers so far are in {folder}; the same command goes on from there.")
            raise
        report = _report(settings, folder, task, said, mentions, named, judged)
        report["environment"] = environment() | {**ask.where} | {"threads": torch.get_num_threads()}
    report |= {"call": line, "remarks": remarks(report)}
    echo(f"Report: {write_report(folder, report)}")
    return report


def _judges(settings: Settings, place: str, model: Any, vocabulary: Vocabulary) -> list[Judged]:
    """Return who judges, the CLIP of the baselines first."""
    clip, matchers = ClipJudge(load_matcher(place, model=model), vocabulary), settings.matchers
    loaded = load_matchers((place for each in matchers.values() for place in each), matchers, model)
    judges = [Judged("", 0, place, clip)]
    for name, places in matchers.items():
        # the untuned CLIP's own score stands there already
        same = clip.calibrated and [loaded[place].version for place in places] == [clip.version]
        judges += [
            Judged(name, number, place, MatcherJudge(loaded[place], vocabulary, scores=not same))
            for number, place in enumerate(places)
        ]
    return judges


def _report(
    settings: Settings,
    folder: Path,
    task: EvalTask,
    said: pa.Table,
    mentions: Sequence[Sequence[Mention]],
    named: EvalTask,
    judged: Sequence[Judged],
) -> dict[str, Any]:
    """Write the table of answers, and return what is said of it but for words and machine."""
    flat = [mention for each in mentions for mention in each]
    verifiers = verifiers_of(judged)
    table = table_of_all(judged, named, [mention.probability for mention in flat])
    results = results_of(named, table, verifiers, settings.matchers)
    pq.write_table(table, folder / ANSWERS)
    pictures = sum(bool(each) for each in mentions)
    known = [{"name": d.name, "about": d.about, "role": d.role, "trainings": d.seeds} for d in verifiers]
    return {
        "command": COMMAND,
        "version": lvlm_guard.__version__,
        "model": settings.model,
        "task": task.describe(),
        "settings": settings.to_dict(),
        "counts": {
            "pictures": len(task.items),
            "pictures_with_mentions": pictures,
            "mentions": len(flat),
            "hallucinated": sum(not mention.true for mention in flat),
            "empty": sum(not text.strip() for text in said["text"].to_pylist()),
            "cut": sum(not ended for ended in said["ended"].to_pylist()),
        },
        "bootstrap": {"draws": DRAWS, "seed": 0, "unit": "pictures, and trainings where there are several"},
        "verifiers": [one | {"judged": one["name"] in settings.matchers} for one in known],
        "matchers": {name: [one.told(pictures) for one in judged if one.name == name] for name in settings.matchers},
        "clip": judged[0].told(pictures),
        "seconds_a_description": float(said["seconds"].to_numpy().mean()),
        **results,
        "rows": [{"model": settings.model, "method": row["decoder"]} | row for row in results["rows"]],
        "reliability": reliabilities(table, verifiers, named),
    }
