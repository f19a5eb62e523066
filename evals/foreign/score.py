"""From files of answers to results, as a run's folder has them: `lvlm-guard eval score FILE --task T`.

Each task reads its files, and says what is right. A decoder that says less names fewer objects that are not there. So
captions are also held against the baseline's with both of a picture cut after as many words as the shorter one has:
what is gained there is gained by what is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given, read
from lvlm_guard.evals.foreign.gathered import Gathered, Questions, gather
from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.metrics.mmhal import TYPES, read_reply
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.report.layout import said
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.stats.tally import BATCH
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.tasks.amber import GENERATIVE, Amber, caption_truth, rows_of
from lvlm_guard.evals.tasks.coco import truth_of
from lvlm_guard.evals.tasks.pope.questions import KINDS, described
from lvlm_guard.evals.tasks.pope.task import truths_of
from lvlm_guard.evals.tasks.repope import rescored

Files = Mapping[str, Path]
DIALECTS = {"default": "ours"}
CUT = "cut as short as"


@dataclass(frozen=True)
class Data:
    """What files are scored by."""

    questions: Sequence[Path] = ()  # files of questions, where answers have no labels, or captions are asked them
    annotations: Path | None = None  # what is in the pictures of captions; AMBER's data
    dialect: Sequence[str] = ()  # how captions are read; () for ours
    words: Sequence[int] = ()  # lengths that captions are cut to, beside whole
    repope: str = ""  # RePOPE's folder, or "fetch": answers to POPE's questions about COCO count by its labels too
    baseline: str | None = None  # the decoder that the others are compared with; None: the first


def yes_no(files: Files, data: Data) -> Iterator[Gathered]:
    """Questions that are answered yes or no, POPE's among them."""
    notes: list[str] = []
    given = {name: read(path) for name, path in files.items()}
    asked = Questions(data.questions) if data.questions else None
    if asked:
        given = {name: asked.join(name, these) for name, these in given.items()}
        notes += asked.notes
    found = gather("yes_no", {name: map(_by_rows, these) for name, these in given.items()}, data.baseline)
    if asked and (left := len(asked.asked) - len(found.items)):
        notes.append(f"{left} of {len(asked.asked)} questions have no answer, and are left out.")
    if not any(found.items["picture"].to_pylist()):
        told = "The files name no pictures, so each question counts as one of its own, and intervals are too narrow."
        notes.append(f"{told} Give the questions with --questions.")
    yield replace(found, notes=[*notes, *found.notes])


def _by_rows(answer: Given) -> Given:
    rows = (f"{'pope' if kind in KINDS else 'yes_no'}_{kind}" for kind in answer.kinds.split(",") if kind)
    return answer._replace(kinds=",".join(rows))


def captions_of(files: Mapping[str, Path]) -> dict[str, list[Given]]:
    """Return each file's captions, told apart by their pictures' ids; raises `DataError` at one of no picture."""
    found: dict[str, list[Given]] = {name: [] for name in files}
    for name, path in files.items():
        for answer in read(path):
            if not answer.picture:
                raise DataError(f"Line {answer.line} of {name} names no picture: captions need 'image_id' or 'image'.")
            key = str(image_id(answer.picture))
            found[name].append(answer._replace(item=key, picture=key, decoder=answer.decoder or name))
    return found


def with_objects(captions: Mapping[str, Iterable[Given]], annotations: Path | None) -> dict[str, list[Given]]:
    """Return captions with the objects of their pictures, by annotations or as lmms-eval's log has them, as truths."""
    logged = {caption.item: caption.objects for those in captions.values() for caption in those}
    known = truth_of(annotations).of if annotations else logged.get
    truths: dict[str, str] = {}
    for item in logged:
        if (objects := known(item)) is None:
            raise DataError("Nothing says what is in the pictures: give --annotations, COCO's or CHAIR's ground truth.")
        truths[item] = json.dumps(sorted(objects))
    return {name: [each._replace(truth=truths[each.item]) for each in those] for name, those in captions.items()}


def shortened(caption: Given, words: int) -> Given:
    """Return a caption's first words between blanks, or a shorter one as it is."""
    found = caption.text.split()
    return caption._replace(text=caption.text if len(found) <= words else " ".join(found[:words]), cut_at=None)


def cut_as_short(captions: Sequence[Given], baseline: str) -> tuple[list[Given], dict[str, str]]:
    """Return each decoder's captions and the baseline's, picture by picture cut to the shorter of the two. Also
    returns, of these decoders, the baseline's -> the other's whose control it is."""
    plain = {(caption.item, caption.seed): caption for caption in captions if caption.decoder == baseline}
    made: list[Given] = []
    controls: dict[str, str] = {}
    for theirs in captions:
        ours = plain.get((theirs.item, theirs.seed)) or plain.get((theirs.item, 0))
        if theirs.decoder != baseline and ours is not None:
            words = min(len(ours.text.split()), len(theirs.text.split()))
            control, own = f"{baseline} {CUT} {theirs.decoder}", f"{theirs.decoder} {CUT} {baseline}"
            controls[control] = own
            made.append(shortened(theirs._replace(decoder=control, text=ours.text), words))
            made.append(shortened(theirs._replace(decoder=own), words))
    return made, controls


def chair(files: Files, data: Data) -> Iterator[Gathered]:
    """Captions of COCO's pictures, whole and cut to equal lengths, in pairs too."""
    dialects = [DIALECTS.get(name, name) for name in data.dialect] or ["ours"]
    for dialect in dialects:
        coco_words(dialect)  # an unknown one, or one without its data, before anything is read
    captions = with_objects(captions_of(files), data.annotations)
    every = [caption for those in captions.values() for caption in those]
    short, controls = cut_as_short(every, data.baseline or every[0].decoder)
    pairs = {"captions of equal length": short} if short else {}
    sets = {"chair": captions | pairs} | {
        f"chair_{words}_words": {file: [shortened(c, words) for c in those] for file, those in captions.items()}
        for words in data.words
    }
    for name, given in sets.items():
        yield gather(name, given, data.baseline, kind="chair", controls=controls, about={"dialects": dialects})


def opope(files: Files, data: Data) -> Iterator[Gathered]:
    """Captions of POPE's pictures, asked POPE's questions."""
    if not data.questions:
        raise DataError("OPOPE asks captions POPE's questions: give the file of these with --questions.")
    asked = truths_of([described(path, len(data.questions)) for path in data.questions])
    truths = {str(image_id(picture)): json.dumps(truth) for picture, truth in asked.items()}
    captions = captions_of(files)
    fit = {
        name: [c._replace(truth=truths[c.item]) for c in those if c.item in truths] for name, those in captions.items()
    }
    every, kept = (len({c.item for those in part.values() for c in those}) for part in (captions, fit))
    if not kept:
        raise DataError(f"None of the {every} captioned pictures is among the {len(truths)} of the questions.")
    left = [f"{every - kept} of {every} captioned pictures are left out: nothing is asked of them."]
    yield gather("opope", fit, data.baseline, kind="opope", notes=left if every > kept else [])


def amber(files: Files, data: Data) -> Iterator[Gathered]:
    """AMBER: captions and yes/no questions, by AMBER's annotations; VLMEvalKit's tables have the labels themselves."""
    found: dict[bool, dict[str, list[Given]]] = {False: {}, True: {}}  # whether they are captions
    texts = cache(lambda: Amber(data.annotations or ""))
    for name, path in files.items():
        for answer in read(path):
            kind = answer.kinds
            if answer.label is None or str(answer.label)[:1] == "[":  # AMBER's file, or lmms-eval's log of captions
                number = int(answer.asked) if answer.asked.isdigit() else -1
                number += answer.label is not None  # lmms-eval counts from 0
                known = texts().annotation(number)
                if answer.label not in (None, str(known["truth"])):
                    told = f"a picture with {answer.label}, AMBER's {number} has {known['truth']}"
                    raise DataError(f"Line {answer.line} of {name} is of {told}: other pictures, or another order.")
                kind, picture = known["type"], texts().queries[number]["image"]
                truth = json.dumps(caption_truth(known)) if kind == GENERATIVE else ""
                answer = answer._replace(item=str(number), picture=picture, label=known["truth"], truth=truth)
            rows = ("amber_captions",) if answer.truth else rows_of({"id": answer.item, "type": kind})
            found[bool(answer.truth)].setdefault(name, []).append(answer._replace(kinds=",".join(rows)))
    if found[False]:
        yield gather("amber", found[False], data.baseline, kind="amber")
    if found[True]:
        about, note = texts().about()
        notes = [note] if note else []
        yield gather("amber_captions", found[True], data.baseline, kind="amber_captions", notes=notes, about=about)


def mmhal(files: Files, data: Data) -> Iterator[Gathered]:
    """MMHal-Bench: files of stored verdicts, which name their judge."""
    replies = {name: read_reply(path) for name, path in files.items()}
    judges = {(str(reply.judge["model"]), reply.prompt_sha256): name for name, reply in replies.items()}
    if len(judges) > 1:
        told = ", ".join(f"{name} by {model}, prompt {prompt[:16]}" for (model, prompt), name in judges.items())
        raise DataError(f"The files were judged differently ({told}): their numbers do not compare. Score them apart.")
    given, notes = {}, []
    for name, reply in replies.items():
        kinds = [f"mmhal,mmhal_{TYPES[at % len(TYPES)]}" for at in range(len(reply.verdicts))]
        given[name] = [
            Given(at + 1, str(at), picture=str(at), text=verdict, kinds=kinds[at], truth="null")
            for at, verdict in enumerate(reply.verdicts)
        ]
        digests = f"prompt_sha256 {reply.prompt_sha256[:16]}, answers_sha256 {reply.answers_sha256[:16]}"
        notes.append(f"{name}: judged by {reply.judge['model']} on {reply.judge['date']}; {digests}.")
    yield gather("mmhal", given, data.baseline, kind="mmhal_verdicts", notes=notes)


TASKS: dict[str, tuple[Callable[[Files, Data], Iterator[Gathered]], tuple[str, ...]]] = {
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
    Raises `DataError` where there is no such task in `TASKS`, or files can't be scored; it names file and line."""
    data = data or Data()
    if task not in TASKS:
        near = f"{did_you_mean(task, TASKS)}There are {', '.join(TASKS)}."
        raise DataError(f"--task {task!r} is none of files of answers. {near}")
    read_as, uses = TASKS[task]
    for name in (f.name for f in fields(data) if f.name not in (*uses, "baseline") and getattr(data, f.name)):
        raise DataError(f"--{name} is not for --task {task}, and would do nothing: leave it out.")
    parts = list(read_as(files, data))
    tasks: list[Any] = [part.describe() for part in parts]
    items: Iterable[Mapping[str, Any]] = chain.from_iterable(part.described_items() for part in parts)
    batches: Iterable[pa.RecordBatch] = [batch for part in parts for batch in part.answers.to_batches(BATCH)]
    notes = [note for part in parts for note in part.notes]
    if data.repope:
        tasks, items, batches, note = rescored(data.repope, tasks, items, batches)
        notes.append(note)
    decoders: dict[str, dict[str, Any]] = {}
    for decoder in chain.from_iterable(part.decoders for part in parts):
        decoders.setdefault(decoder["name"], decoder)  # the first task has the controls too
    found = score_answers(batches, items, tasks, list(decoders.values()), allowed=allowed)
    found["warnings"] = list(dict.fromkeys([*notes, *_at_equal_length(found), *found["warnings"]]))
    return found | {"settings": {"model": f"{len(files)} file{'s' if len(files) > 1 else ''} of answers"}}


def _at_equal_length(found: Mapping[str, Any]) -> Iterator[str]:
    known = {(row["decoder"], row["baseline"], row["metric"]): row for row in found["rows"] if row["task"] == "chair"}
    for ours, theirs in [(d["control_of"], d["name"]) for d in found["decoders"] if d["control_of"]]:
        told = [row for metric in ("chair_s", "chair_i", "object_recall") if (row := known.get((ours, theirs, metric)))]
        if told:
            yield f"{ours} less {theirs}: " + "; ".join(f"{row['metric']} {said(row)}" for row in told) + "."
