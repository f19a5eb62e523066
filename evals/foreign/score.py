"""From files of answers to results, as a run's folder has them: `lvlm-guard eval score FILE --task T`.

Each task reads its files, and says what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.captions import captions_of, cut_as_short, objects_of, shortened
from lvlm_guard.evals.foreign.formats import Given, read
from lvlm_guard.evals.foreign.gathered import Gathered, gather
from lvlm_guard.evals.foreign.questions import Questions
from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.metrics.mmhal import TYPES, read_reply
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.report.numbers import said
from lvlm_guard.evals.spec.items import EvalTask, Kind
from lvlm_guard.evals.stats.reading import BATCH
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.tasks.amber import GENERATIVE, Amber, rows_of
from lvlm_guard.evals.tasks.opope import truths_of
from lvlm_guard.evals.tasks.pope.files import described
from lvlm_guard.evals.tasks.pope.questions import KINDS
from lvlm_guard.evals.tasks.repope import rescored

Files = Mapping[str, Path]
DIALECTS = {"default": "ours"}


@dataclass(frozen=True)
class Data:
    """What files are scored by."""

    questions: Sequence[Path] = ()  # files of questions, where answers have no labels, or captions are asked them
    annotations: Path | None = None  # what is in the pictures of captions; AMBER's data
    dialect: Sequence[str] = ()  # how captions are read; () for ours
    words: Sequence[int] = ()  # lengths that captions are cut to, beside whole
    repope: str = ""  # RePOPE's folder, or "fetch": answers to POPE's questions about COCO count by its labels too
    baseline: str | None = None  # the decoder that the others are compared with; None: the first


@dataclass(frozen=True)
class Part:
    """Answers that are scored as one task."""

    name: str
    kind: Kind
    found: Gathered
    truths: Iterable[Any]  # of each item
    rows_of: Callable[[str], Sequence[str]] = lambda _: ()  # kinds of a question -> the result rows it counts in
    about: Mapping[str, Any] = field(default_factory=dict)  # what the scorer has to know of the task
    notes: Sequence[str] = ()  # what a reader of the scores has to know

    @cached_property
    def rows(self) -> dict[str, Sequence[str]]:
        """Kinds of the questions, as the items have them -> the result rows that these count in."""
        return {kinds: self.rows_of(kinds) or [self.name] for kinds in self.found.items["kinds"].unique().to_pylist()}

    def describe(self) -> dict[str, Any]:
        """Return the task as `EvalTask.describe()` has it."""
        n, pictures = len(self.found.items), len(self.found.items["picture"].unique())
        rows = list(dict.fromkeys(row for rows in self.rows.values() for row in rows))
        told = EvalTask(self.name, self.kind, (), 0, about=self.about).describe()
        return told | {"n": n, "pictures": pictures, "rows": rows}

    def items(self) -> Iterator[dict[str, Any]]:
        """Yield the items as `items.jsonl` has them; tags say which of POPE's, by which RePOPE finds them."""
        fixed = {"task": self.name, "split": "test", "kind": self.kind}
        columns = [self.found.items[name].to_pylist() for name in ("item", "picture", "question", "kinds")]
        for item, picture, question, kinds, truth in zip(*columns, self.truths, strict=True):
            number = item.rpartition("/")[2]  # "adversarial/12" is the twelfth
            ids = {f"pope_{kind}": int(number) for kind in kinds.split(",") if kind in KINDS and number.isdigit()}
            row = {"item": item, "picture": picture or item, "prompt": question, "question": question, "truth": truth}
            tags = {"data_set": "coco", "ids": ids} if ids else {}
            yield {**fixed, **row, "rows": self.rows[kinds], "tags": tags}


def yes_no(files: Files, data: Data) -> Iterator[Part]:
    """Questions that are answered yes or no, POPE's among them."""
    notes: list[str] = []
    given = {name: read(path) for name, path in files.items()}
    if data.questions:
        asked = Questions(data.questions)
        given = {name: asked.join(name, these) for name, these in given.items()}
        notes += asked.notes
    found = gather("yes_no", given, data.baseline)
    if data.questions and (left := len(asked.asked) - len(found.items)):
        notes.append(f"{left} of {len(asked.asked)} questions have no answer, and are left out.")
    if not any(found.items["picture"].to_pylist()):
        told = "The files name no pictures, so each question counts as one of its own, and intervals are too narrow."
        notes.append(f"{told} Give the questions with --questions.")

    def rows(kinds: str) -> list[str]:
        return [f"{'pope' if kind in KINDS else 'yes_no'}_{kind}" for kind in kinds.split(",") if kind]

    yield Part("yes_no", "pope", found, found.items["label"].to_pylist(), rows, notes=notes)


def chair(files: Files, data: Data) -> Iterator[Part]:
    """Captions of COCO's pictures, whole and cut to equal lengths, in pairs too."""
    dialects = [DIALECTS.get(name, name) for name in data.dialect] or ["ours"]
    for dialect in dialects:
        coco_words(dialect)  # an unknown one, or one without its data, before anything is read
    captions = captions_of(files)
    every = [caption for those in captions.values() for caption in those]
    objects = objects_of(data.annotations, every)
    short, controls = cut_as_short(every, data.baseline or every[0].decoder)
    pairs = {"captions of equal length": short} if short else {}
    sets = {"chair": captions | pairs} | {
        f"chair_{words}_words": {file: [shortened(c, words) for c in those] for file, those in captions.items()}
        for words in data.words
    }
    for name, given in sets.items():
        found = gather(name, given, data.baseline, controls=controls, labelled=False)
        truths = [objects[item] for item in found.items["item"].to_pylist()]
        yield Part(name, "chair", found, truths, about={"dialects": dialects})


def opope(files: Files, data: Data) -> Iterator[Part]:
    """Captions of POPE's pictures, asked POPE's questions."""
    if not data.questions:
        raise DataError("OPOPE asks captions POPE's questions: give the file of these with --questions.")
    asked = truths_of([described(path, len(data.questions)) for path in data.questions])
    truths = {str(image_id(picture)): truth for picture, truth in asked.items()}
    captions = captions_of(files)
    fit = {name: [caption for caption in those if caption.item in truths] for name, those in captions.items()}
    lost, kept = (len({c.item for those in part.values() for c in those}) for part in (captions, fit))
    if not kept:
        raise DataError(
            f"None of the {lost} captioned pictures is among the {len(truths)} of the questions: give captions of "
            "POPE's pictures, or questions about these."
        )
    left = f"{lost - kept} of {lost} captioned pictures are left out: nothing is asked of them."
    found = gather("opope", fit, data.baseline, labelled=False)
    asked_of = [truths[item] for item in found.items["item"].to_pylist()]
    yield Part("opope", "opope", found, asked_of, notes=[left] if lost > kept else [])


def amber(files: Files, data: Data) -> Iterator[Part]:
    """AMBER: captions and yes/no questions, by AMBER's annotations; VLMEvalKit's tables have the labels themselves."""
    known: Amber | None = None
    pictures: dict[int, str] = {}
    captions: dict[str, list[Given]] = {}
    answers: dict[str, list[Given]] = {}
    for name, path in files.items():
        for answer in read(path):
            if answer.label is None or str(answer.label)[:1] == "[":  # AMBER's file, or lmms-eval's log of captions
                if known is None:
                    known = Amber(data.annotations or "")
                    pictures = {query["id"]: query["image"] for query, _ in known.asked()}
                number = int(answer.asked) if answer.asked.isdigit() else -1
                number += answer.label is not None  # lmms-eval counts from 0
                truth = known.annotation(number)
                if answer.label not in (None, str(truth["truth"])):
                    raise DataError(
                        f"Line {answer.line} of {name} is of a picture with {answer.label}, AMBER's {number} has "
                        f"{truth['truth']}: the log is of other pictures, or in another order."
                    )
                own = {"item": str(number), "picture": pictures[number], "label": truth["truth"]}
                answer = answer._replace(**own, kinds=truth["type"])
            (captions if answer.kinds == GENERATIVE else answers).setdefault(name, []).append(answer)
    if answers:
        found = gather("amber", answers, data.baseline)
        truths = found.items["label"].to_pylist()
        yield Part("amber", "amber", found, truths, lambda kind: rows_of({"id": "", "type": kind}))
    if captions and known is not None:
        found = gather("amber_captions", captions, data.baseline, labelled=False)
        annotations = (known.annotation(int(item)) for item in found.items["item"].to_pylist())
        truths = [{name: row[name] for name in ("truth", "hallu")} for row in annotations]
        about, note = known.about()
        yield Part("amber_captions", "amber_captions", found, truths, about=about, notes=[note] if note else [])


def mmhal(files: Files, data: Data) -> Iterator[Part]:
    """MMHal-Bench: files of stored verdicts, which name their judge."""
    replies = {name: read_reply(path) for name, path in files.items()}
    judges = {(str(reply.judge["model"]), reply.prompt_sha256): name for name, reply in replies.items()}
    if len(judges) > 1:
        told = ", ".join(f"{name} by {model}, prompt {prompt[:16]}" for (model, prompt), name in judges.items())
        raise DataError(f"The files were judged differently ({told}): their numbers do not compare. Score them apart.")
    given = {
        name: [
            Given(at + 1, str(at), picture=str(at), text=verdict, kinds=TYPES[at % len(TYPES)])
            for at, verdict in enumerate(reply.verdicts)
        ]
        for name, reply in replies.items()
    }
    notes = [
        f"{name}: judged by {reply.judge['model']} on {reply.judge['date']}; prompt_sha256 {reply.prompt_sha256[:16]}, "
        f"answers_sha256 {reply.answers_sha256[:16]}."
        for name, reply in replies.items()
    ]
    found = gather("mmhal", given, data.baseline, labelled=False)
    nothing = [None] * len(found.items)
    yield Part("mmhal", "mmhal_verdicts", found, nothing, lambda kind: ["mmhal", f"mmhal_{kind}"], notes=notes)


TASKS: dict[str, tuple[Callable[[Files, Data], Iterator[Part]], tuple[str, ...]]] = {
    "yes-no": (yes_no, ("questions", "repope")),
    "chair": (chair, ("annotations", "dialect", "words")),
    "opope": (opope, ("questions",)),
    "amber": (amber, ("annotations",)),
    "mmhal": (mmhal, ()),
}
"""Name of `--task` -> what reads its files, and which fields of `Data` it uses beside the baseline."""


def score_files(
    files: Mapping[str, Path], task: str, data: Data | None = None, allowed: Allowed | None = None
) -> dict[str, Any]:
    """Score files of answers, by the name of the decoder where they have none; returns as `stats.score.score_answers`.

    Raises `DataError` where there is no such task in `TASKS`, or files can't be scored; it names file and line.
    """
    data = data or Data()
    if task not in TASKS:
        near = get_close_matches(task, TASKS, n=1)
        raise DataError(
            f"--task {task!r} is none of files of answers{f'; did you mean {near[0]!r}?' if near else '.'} There are "
            f"{', '.join(TASKS)}."
        )
    read_as, uses = TASKS[task]
    for name in (f.name for f in fields(data) if f.name not in (*uses, "baseline") and getattr(data, f.name)):
        raise DataError(f"--{name} is not for --task {task}, and would do nothing: leave it out.")
    parts = list(read_as(files, data))
    tasks: list[Any] = [part.describe() for part in parts]
    items: Iterable[Mapping[str, Any]] = chain.from_iterable(part.items() for part in parts)
    batches: Iterable[pa.RecordBatch] = [batch for part in parts for batch in part.found.answers.to_batches(BATCH)]
    notes = [note for part in parts for note in (*part.notes, *part.found.notes)]
    if data.repope:
        tasks, items, batches, note = rescored(data.repope, tasks, items, batches)
        notes.append(note)
    decoders: dict[str, dict[str, Any]] = {}
    for decoder in chain.from_iterable(part.found.decoders for part in parts):
        decoders.setdefault(decoder["name"], decoder)  # the first task has the controls too
    found = score_answers(batches, items, tasks, list(decoders.values()), allowed=allowed)
    found["warnings"] = list(dict.fromkeys([*notes, *_at_equal_length(found), *found["warnings"]]))
    return found | {"settings": {"model": f"{len(files)} file{'s' if len(files) > 1 else ''} of answers"}}


def _at_equal_length(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what captions differ by from the baseline's, both cut to the shorter of the two."""
    known = {(row["decoder"], row["baseline"], row["metric"]): row for row in found["rows"] if row["task"] == "chair"}
    for ours, theirs in [(d["control_of"], d["name"]) for d in found["decoders"] if d["control_of"]]:
        told = [row for metric in ("chair_s", "chair_i", "object_recall") if (row := known.get((ours, theirs, metric)))]
        if told:
            yield f"{ours} less {theirs}: " + "; ".join(f"{row['metric']} {said(row)}" for row in told) + "."
