"""All stages of a distillation in one folder, each of which goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

import lvlm_guard
from lvlm_guard.adapters.distill import drift
from lvlm_guard.adapters.distill.answers import AnswerFile, pictures_of, summary
from lvlm_guard.adapters.distill.card import card
from lvlm_guard.adapters.distill.rows import without_repeats
from lvlm_guard.adapters.distill.settings import Lessons, Recipe
from lvlm_guard.adapters.distill.teacher import Teacher, method_of
from lvlm_guard.adapters.distill.training import train
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import TRAINING, adapter_folders, differing, read_json, write_json
from lvlm_guard.api import guard, unguard
from lvlm_guard.matching import Vocabulary
from lvlm_guard.pretrained import load_model

BEGUN, REPORT, COMPARED = "distill.json", "report.json", "held-out.json"
TRAIN, HELD_OUT = "train", "held-out"
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Distilled:
    """What a distillation made.

    Args:
        folder: of all of it.
        adapters: a PEFT adapter for each seed.
        report: what was asked, learnt and found, as JSON data; the same stands in report.json.
        main: whether this process is the one that tells the results, where several train together.
    """

    folder: Path
    adapters: tuple[Path, ...]
    report: dict[str, Any] = field(default_factory=dict)
    main: bool = True


def distill(
    lessons: Lessons,
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    *,
    device: str = "auto",
    at_once: int = 8,
    echo: Callable[[str], object],
    progress: Progress,
    start_over: bool = False,
    retrain: bool = False,
) -> Distilled:
    """Let the guarded model answer, train an adapter for each seed on that, and compare them.

    Args:
        lessons: what is asked, of which pictures.
        recipe: how it is learnt.
        seeds: of trainings.
        out: folder; the same call goes on there.
        device: of the model.
        at_once: prompts of one generate() call.
        echo: told what happens, a line at a time.
        progress: opens a progress bar: (what, total) -> context manager of a function to advance it.
        start_over: drop what an earlier call left in the folder.
        retrain: keep the answers, drop what was trained on them.

    Raises:
        TrainingError: the folder holds another distillation, too few pictures can be read, or training fails.
        GuardError: the model, a method or a picture can't be used.
        KeyboardInterrupt: what was answered and trained is kept.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise TrainingError(f"seeds are {list(seeds)}: give one or more different numbers.")
    state = PartialState(cpu=device == "cpu")
    if not state.is_main_process:  # one process tells
        echo, progress = (lambda _: None), (lambda *_: nullcontext(lambda _: None))
    method = method_of(lessons)
    pictures = pictures_of(lessons)
    if state.is_main_process:
        _begin(out, lessons, start_over, retrain)
    state.wait_for_everyone()
    model, processor = load_model(lessons.model, device=device, dtype=lessons.dtype, revision=lessons.revision or None)
    files = {part: AnswerFile(out / "answers", part, state.process_index) for part in (TRAIN, HELD_OUT)}
    answered = {part: {lesson.picture for lesson in file.lessons()} for part, file in files.items()}
    wanted = {TRAIN: pictures.learnt, HELD_OUT: pictures.held_out}
    todo = {part: [name for name in names if name not in answered[part]] for part, names in wanted.items()}
    if any(todo.values()):
        teacher = Teacher(*guard(model, processor, method), method, lessons, at_once)
        for part, names in todo.items():
            mine = names[state.process_index :: state.num_processes]
            what = f"{lessons.method} answers ({part})"
            with progress(what, len(mine)) as advance:
                teacher.answer(pictures, mine, files[part], advance, lessons.other if part == HELD_OUT else ())
        unguard(model)
        unguard(processor)
    state.wait_for_everyone()
    counted = {part: summary(file.lessons()) for part, file in files.items()}
    _say(counted, echo)
    # in order of pictures, whoever answered them when: a training must not depend on that
    lines = sorted(line for line in files[TRAIN].lines() if '"failed":null' in line[-24:])
    held_out = [lesson for lesson in files[HELD_OUT].lessons() if not lesson.failed]
    if not lines or not held_out:
        raise TrainingError("None of the pictures can be read, so there is nothing to learn from or to measure on.")
    if recipe.soft and recipe.fresh <= 1:
        vocabulary = Vocabulary.of(lessons.objects or None)
        lines = list(without_repeats(lines, processor.tokenizer, vocabulary, recipe.fresh))
    folders = adapter_folders(out, seeds)
    compared = []
    for seed, folder in zip(seeds, folders, strict=True):
        with progress(f"training, seed {seed}", recipe.steps) as advance:
            student = train(model, processor, lines, pictures, recipe, seed, folder, advance)
        if state.is_main_process:
            kept = read_json(folder / COMPARED)
            if kept is None:
                with progress(f"held-out answers, seed {seed}", len(held_out)) as advance:
                    found = drift.compare(student, processor, lessons, held_out, pictures, at_once, advance)
                kept = [asdict(one) for one in found]
                write_json(folder / COMPARED, kept)
            compared.append([drift.Compared(**one) for one in kept])
        model = student.unload()
    report = {
        "command": "train distill",
        "version": lvlm_guard.__version__,
        "lessons": asdict(lessons),
        "knobs": method.knobs(),
        "recipe": asdict(recipe),
        "seeds": list(seeds),
        "adapters": [str(folder) for folder in folders],
        "answers": counted,
        "rows": drift.rows_of(lessons.model, lessons.method, compared),
    }
    return Distilled(out, folders, json.loads(json.dumps(report, default=str)), state.is_main_process)


def keep_report(done: Distilled) -> None:
    """Write report.json, and the card of each adapter."""
    write_json(done.folder / REPORT, done.report)
    for folder in done.adapters:
        (folder / "README.md").write_text(card(done.report), encoding="utf-8")


def _begin(out: Path, lessons: Lessons, start_over: bool, retrain: bool) -> None:
    """Note what this distillation is, or find that the folder has it already."""
    told = json.loads(json.dumps(asdict(lessons), default=str))
    before = None if start_over else read_json(out / BEGUN)
    if before is not None and (other := differing({key: before.get(key) for key in told}, told)):
        raise TrainingError(
            f"{out} holds a distillation with other {other}, whose answers can't be mixed with these. Give another "
            "--out, or --start-over to drop it."
        )
    if before is None and (out / "answers").exists() and not start_over:
        raise TrainingError(f"{out} holds answers of an unknown distillation: give another --out, or --start-over.")
    if start_over:
        shutil.rmtree(out / "answers", ignore_errors=True)
    if start_over or retrain:
        for folder in (out, *out.glob("seed-*")):
            shutil.rmtree(folder / TRAINING, ignore_errors=True)
            (folder / COMPARED).unlink(missing_ok=True)
    write_json(out / BEGUN, told)


def _say(counted: dict[str, dict[str, Any]], echo: Callable[[str], object]) -> None:
    told = counted[TRAIN]
    asked = max(told["answers"], 1)
    echo(
        f"{told['answers']} answers about {told['pictures']} pictures: the guard had a choice in "
        f"{told['open'] / asked:.0%} of them and changed {told['changed'] / asked:.0%}."
    )
    failed = sum(part["failed"] for part in counted.values())
    if failed:
        echo(f"{failed} pictures could not be read and were skipped; answers/*.jsonl says why.")
