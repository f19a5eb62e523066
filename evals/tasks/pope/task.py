"""POPE over pictures of one's own: the published files for COCO, A-OKVQA and GQA, or any question file.

    lvlm-guard eval run --model M --tasks pope_coco,pope_gqa --images PICTURES
    lvlm-guard eval run --model M --tasks pope --questions mine_random.json --images PICTURES
    lvlm-guard eval run --model M --tasks opope --images val2014     # captions, asked POPE's questions afterwards

Published files are fetched where `--questions` gives none. A question that several kinds share (half of them do) is
asked once and counts in each.

The validation split never touches a test. For COCO it needs no file: with `--annotations instances_val2014.json` 500
pictures of no published test (see `tasks.coco`) are asked questions of three kinds, always the same; the test
split has those about 80 such pictures beside it, on which controls are fitted and chosen. Own files must be marked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.opope import asked_object
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import STOCK_SUFFIX, made
from lvlm_guard.evals.tasks.coco import PROMPT, annotation_file, in_val_half, of_published_test, read_instances
from lvlm_guard.evals.tasks.pope.questions import (
    KINDS,
    Question,
    QuestionFile,
    build,
    described,
    files_of,
    published_files,
)

SUFFIXES = {PAPER: " Please answer this question with one word."}
"""Preset -> what follows a question; else that of lmms-eval's stock task."""

VAL_PICTURES, CALIBRATION_PICTURES = 500, 80
TITLES = {"coco": "COCO", "aokvqa": "A-OKVQA", "gqa": "GQA"}

_OBJECT = re.compile(r"is there an? (.+?) in the i", re.IGNORECASE)


def pope(settings: Settings) -> list[EvalTask]:
    """Return POPE over the files of `--questions`: a task for each data set that they are of."""
    groups: dict[str, list[QuestionFile]] = {}
    for file in files_of("pope", settings):
        groups.setdefault(file.data_set, []).append(file)
    if not groups:
        told = "The published ones are the tasks pope_coco, pope_aokvqa and pope_gqa; lmms-eval's is lmms:pope."
        raise DataError(f"The task pope asks your own questions: give their files with --questions. {told}")
    return [_of_files(f"pope_{name}" if name else "pope", name, files, settings) for name, files in groups.items()]


def published_pope(settings: Settings, data_set: str) -> list[EvalTask]:
    """Return POPE over COCO val2014, A-OKVQA (whose pictures are COCO's), or GQA."""
    name = f"pope_{data_set}"
    files = files_of(name, settings)
    built = data_set == "coco" and bool(settings.annotations)
    if settings.split == "val" and not files:
        if built:
            return [_built(name, settings, VAL_PICTURES)]
        coco_can = "Give COCO's instances with --annotations, to build questions over pictures of no published test. "
        raise DataError(
            f"{name} has published questions for the test split only, and settings must not be chosen on them. "
            f"{coco_can if data_set == 'coco' else ''}Or give --questions made for it: `build(rows, kind)` over other "
            f"pictures, written by `write_questions(path, questions, split='val')` (in {build.__module__})."
        )
    task = _of_files(name, data_set, files or published_files(data_set, settings.preset == PAPER), settings)
    return [_calibrated(task, settings) if built and settings.split == "test" else task]


pope_coco, pope_aokvqa, pope_gqa = (partial(published_pope, data_set=name) for name in TITLES)


def _calibrated(task: EvalTask, settings: Settings) -> EvalTask:
    """Return a task with questions to calibrate on, where the pictures for them are at hand."""
    asked = min(CALIBRATION_PICTURES, settings.limit or CALIBRATION_PICTURES)
    try:
        built = _built(task.name, replace(settings, limit=None), asked)
    except DataError as error:
        told = f"{task.name}: nothing is calibrated, and no best control is chosen: {error}"
        return replace(task, about={**task.about, "warnings": [*task.about["warnings"], told]})
    tested = {item.picture for item in task.items}  # a file of one's own may ask about any picture
    items = [replace(item, key=f"val-{item.key}") for item in built.items if item.picture not in tested]
    return replace(task, calibration=items, about={**task.about, "calibration": built.about["source"]})


def _of_files(name: str, data_set: str, files: Sequence[QuestionFile], settings: Settings) -> EvalTask:
    taken: dict[str, QuestionFile] = {}
    for file in files:
        if (other := taken.setdefault(file.row, file)) is not file:
            raise DataError(f"{name} has two files for {file.row}: {other.path} and {file.path}. Give one of them.")
        n, marked = len(file.questions), sum(q.split == "val" for q in file.questions)
        if settings.split == "test" and marked:
            told = f"{marked} questions marked for choosing settings ('split': 'val'): they are no test"
            raise DataError(f"{file.path} has {told}. Give --split val, or other questions.")
        if settings.split == "val" and marked < n:
            told = f"is not marked for choosing settings: {n - marked} of {n} questions lack 'split': 'val'"
            how = "Give others, written by `write_questions(path, questions, split='val')`, or --annotations for COCO"
            raise DataError(f"{file.path} {told}. {how}.")
        if tested := list(dict.fromkeys(q.image for q in file.questions if marked and of_published_test(q.image))):
            told = f"{len(tested)} of its pictures are those of a published test; the first is {tested[0]}"
            raise DataError(f"{file.path} is marked 'val', but {told}. Choose settings on others.")
    about = {
        "source": f"POPE, {TITLES.get(data_set, 'own questions')}",
        "questions": [file.describe() for file in files],
        "warnings": [warning for file in files for warning in file.warnings(settings.preset == PAPER)],
    }
    return _of_questions(name, data_set, {row: file.questions for row, file in taken.items()}, about, settings)


def _built(name: str, settings: Settings, pictures: int) -> EvalTask:
    """Return POPE's own builder over pictures of no test; raises `DataError`."""
    path = annotation_file(settings.annotations, "instances", name)
    held = {name: names for name, names in read_instances(path).values() if in_val_half(name)}
    fit = sum(len(names) >= 3 for names in held.values())
    drawn = min(pictures, fit)
    if not drawn:
        raise DataError(f"{path} has no picture of the validation half with three kinds of objects: give COCO's file.")
    rows = [{"image": name, "objects": names} for name, names in held.items()]
    source = f"POPE's builder over {path.name}: {drawn} of {fit} pictures with three objects, none of a test"
    questions = {f"pope_{kind}": build(rows, kind, pictures=drawn) for kind in KINDS}
    return _of_questions(name, "coco", questions, {"source": source, "warnings": []}, settings)


def _of_questions(
    name: str, data_set: str, questions: Mapping[str, Sequence[Question]], about: Mapping[str, Any], settings: Settings
) -> EvalTask:
    """Return a task of the questions of each row: each (picture, text, label) once, however many rows share it."""
    asked: dict[str, dict[tuple[str, str, int], dict[str, int]]] = {}
    for row, of_row in questions.items():
        seen: Counter[tuple[str, str]] = Counter()
        for q in of_row:
            seen[q.image, q.text] += 1  # two published files ask one question twice, and count it twice
            of_picture = asked.setdefault(q.image, {})
            of_picture.setdefault((q.text, q.label, seen[q.image, q.text]), {})[row] = q.question_id
    suffix = SUFFIXES.get(settings.preset, STOCK_SUFFIX)
    items: list[Item] = []
    taken: Counter[str] = Counter()
    for picture, of_picture in asked.items():
        for (text, label, _), ids in of_picture.items():
            # a key does not depend on which files are asked: "310196-is-there-a-snowboard"
            key = re.sub(r"[^a-z0-9]+", "-", f"{Path(picture).stem} {text}".lower()).strip("-")
            taken[key] += 1
            key += f"-{taken[key]}" if taken[key] > 1 else ""
            found = _OBJECT.match(text)
            tags = {"data_set": data_set, "ids": ids} | ({"object": found.group(1)} if found else {})
            items.append(Item(key, picture, text + suffix, (), text, label, tuple(ids), tags))
    return made("pope", settings, items, {**about, "prompt": f"{{question}}{suffix}"}, name=name)


def opope(settings: Settings) -> list[EvalTask]:
    """Return the pictures of POPE's questions about COCO, each to be captioned once (see `metrics.opope`)."""
    given = [path for path in map(Path, settings.questions) if path.is_file()]
    files = [described(path, len(given)) for path in given] or published_files("coco", paper=False)
    items = [Item(Path(name).stem, name, PROMPT, (), truth=t, rows=("opope",)) for name, t in truths_of(files).items()]
    about = {"questions": [file.describe() for file in files]}
    return [made("opope", replace(settings, limit=settings.captions or settings.limit), items, about)]


def truths_of(files: Sequence[QuestionFile]) -> dict[str, dict[str, list[list[str]]]]:
    """Return what captions of a picture are asked: its file name -> kind of questions -> [object, "yes" or "no"]."""
    truths: dict[str, dict[str, list[list[str]]]] = {}
    for kind, question in ((file.kind or "own", question) for file in files for question in file.questions):
        of_kind = truths.setdefault(question.image, {}).setdefault(kind, [])
        of_kind.append([asked_object(question.text), question.label])
    return truths
