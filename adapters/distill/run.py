"""All stages of a distillation in one folder, each of which goes on where it stopped, and what is told of it.

An adapter's README says what it is, what it is not, and how it is used; a page holds the report.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.distill import drift
from lvlm_guard.adapters.distill.lessons import AnswerFile, Lessons, Recipe, pictures_of, summary
from lvlm_guard.adapters.distill.rows import without_repeats
from lvlm_guard.adapters.distill.teacher import Teacher, method_of
from lvlm_guard.adapters.distill.training import train
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import TRAINING, Call
from lvlm_guard.api import guard, unguard
from lvlm_guard.files import differing, plain, read_json, write_json
from lvlm_guard.matching import Vocabulary
from lvlm_guard.pretrained import load_model
from lvlm_guard.report import Html, note, page, section, table, tag, with_interval, write_page

BEGUN, REPORT, COMPARED = "distill.json", "report.json", "held-out.json"
TRAIN, HELD_OUT = "train", "held-out"

Report = Mapping[str, Any]
Row = Mapping[str, Any] | None


def distill(lessons: Lessons, recipe: Recipe, call: Call, *, at_once: int = 8, retrain: bool = False) -> dict[str, Any]:
    """Let the guarded model answer, train an adapter for each seed on that, and compare them.

    Args:
        at_once: prompts of one generate() call.
        retrain: keep the answers, drop what was trained on them.

    Returns:
        What was asked, learnt and found, as JSON data; `keep_report` writes it.

    Raises:
        TrainingError: the folder holds another distillation, too few pictures can be read, or training fails.
        GuardError: the model, a method or a picture can't be used.
        KeyboardInterrupt: what was answered and trained is kept.
    """
    call, state = call.told(), call.state
    method = method_of(lessons)
    pictures = pictures_of(lessons)
    if call.main:
        _begin(call, lessons, retrain)
    state.wait_for_everyone()
    model, processor = load_model(
        lessons.model, device=call.device, dtype=lessons.dtype, revision=lessons.revision or None
    )
    files = {part: AnswerFile(call.out / "answers", part, state.process_index) for part in (TRAIN, HELD_OUT)}
    answered = {part: {lesson.picture for lesson in file.lessons()} for part, file in files.items()}
    wanted = {TRAIN: pictures.learnt, HELD_OUT: pictures.held_out}
    todo = {part: [name for name in names if name not in answered[part]] for part, names in wanted.items()}
    if any(todo.values()):
        teacher = Teacher(*guard(model, processor, method), method, lessons, at_once)
        for part, names in todo.items():
            mine = names[state.process_index :: state.num_processes]
            with call.progress(f"{lessons.method} answers ({part})", len(mine)) as advance:
                teacher.answer(pictures, mine, files[part], advance, lessons.other if part == HELD_OUT else ())
        unguard(model)
        unguard(processor)
    state.wait_for_everyone()
    counted = {part: summary(file.lessons()) for part, file in files.items()}
    _say(counted, call.echo)
    # in order of pictures, whoever answered them when: a training must not depend on that
    lines = sorted(line for line in files[TRAIN].lines() if '"failed":null' in line[-24:])
    held_out = [lesson for lesson in files[HELD_OUT].lessons() if not lesson.failed]
    if not lines or not held_out:
        raise TrainingError("None of the pictures can be read, so there is nothing to learn from or to measure on.")
    if recipe.soft and recipe.fresh <= 1:
        vocabulary = Vocabulary.of(lessons.objects or None)
        lines = list(without_repeats(lines, processor.tokenizer, vocabulary, recipe.fresh))
    folders, compared = call.folders(), []
    for seed, folder in zip(call.seeds, folders, strict=True):
        with call.progress(f"training, seed {seed}", recipe.steps) as advance:
            student = train(model, processor, lines, pictures, recipe, seed, folder, advance)
        if call.main:
            kept = read_json(folder / COMPARED)
            if kept is None:
                with call.progress(f"held-out answers, seed {seed}", len(held_out)) as advance:
                    found = drift.compare(student, processor, lessons, held_out, pictures, at_once, advance)
                kept = [asdict(one) for one in found]
                write_json(folder / COMPARED, kept)
            compared.append([drift.Compared(**one) for one in kept])
        model = student.unload()
    rows = drift.rows_of(lessons.model, lessons.method, compared)
    told = {"lessons": asdict(lessons), "knobs": method.knobs(), "answers": counted, "rows": rows}
    return call.report("distill", folders, recipe, **told)


def _begin(call: Call, lessons: Lessons, retrain: bool) -> None:
    """Note what this distillation is, or find that the folder has it already."""
    out, told = call.out, plain(asdict(lessons))
    before = None if call.start_over else read_json(out / BEGUN)
    if before is not None and (other := differing({key: before.get(key) for key in told}, told)):
        raise TrainingError(
            f"{out} holds a distillation with other {other}, whose answers can't be mixed with these. Give another "
            "--out, or --start-over to drop it."
        )
    if before is None and (out / "answers").exists() and not call.start_over:
        raise TrainingError(f"{out} holds answers of an unknown distillation: give another --out, or --start-over.")
    if call.start_over:
        shutil.rmtree(out / "answers", ignore_errors=True)
    if call.start_over or retrain:
        for folder in (out, *out.glob("seed-*")):  # no other training that lies below
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


_MEASURED = {
    ("pope_random", "accuracy"): "POPE random", ("pope_popular", "accuracy"): "popular",
    ("pope_adversarial", "accuracy"): "adversarial", ("pope_all", "accuracy"): "all",
    ("chair", "chair_s"): "CHAIR_s", ("chair", "chair_i"): "CHAIR_i",
    ("chair", "object_recall"): "recall", ("chair", "length"): "words",
}  # fmt: skip
_KINDS = {"question": "questions", "caption": "captions", "other": "other prompts"}
_DRIFT = {
    ("held_out", "agreement"): "answers word for word as the guarded model",
    ("untouched", "changed"): "answers changed where the guard had no say",
    ("untouched", "kl"): "divergence there, nats a token",
    ("decided", "kl"): "divergence at all steps without a choice, nats a token",
}
_COUNTS = {
    "pictures": "pictures", "failed": "pictures that can't be read", "answers": "answers",
    "yes": "yes, of an object", "open": "with a choice for the guard", "changed": "that the guard changed",
    "tokens": "tokens",
}  # fmt: skip


def keep_report(folder: Path, report: Report) -> Path:
    """Write report.json, report.html and the README of each adapter; return the page's path."""
    write_json(folder / REPORT, report)
    for adapter in report["adapters"]:
        (Path(adapter) / "README.md").write_text(card(report), encoding="utf-8")
    return write_report(folder, report, report["call"])


def card(report: Report) -> str:
    """Return the README.md of an adapter, from its report."""
    lessons, recipe, answers = report["lessons"], report["recipe"], report["answers"]["train"]
    base = "lvlm_guard/embedded/llava" if lessons["model"] == "embedded" else lessons["model"]
    pictures = f"a folder of {answers['pictures']} pictures"
    if not lessons["images"]:
        pictures = f"{answers['pictures']} training scenes of lvlm-guard's embedded world"
    lines = [
        f"| {what} | {_short(plain)} | {_short(tuned)} | {_short(guarded)} | {_ends(difference)} |"
        for what, plain, tuned, guarded, difference in side_by_side(report)
    ]
    told = {**lessons, **answers, **recipe, "batch": recipe["batch"] * recipe["accumulate"], "pictures": pictures}
    told |= {"projector": " and of the projector" if recipe["projector"] else "", "version": report["version"]}
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    template, served, merged = re.split(r"\n<!-- vllm: \w+ -->\n", text)
    vllm = merged.rstrip() if recipe["projector"] else served.format(base=base, rank=max(16, recipe["rank"]))
    return template.format(**told, base=base, measured="\n".join(lines), vllm=vllm) + "\n"


def side_by_side(report: Report) -> list[tuple[str, Row, Row, Row, Row]]:
    """Return (what, plain, distilled, guarded, difference) of what was measured; each a row of the report or None."""
    found = {(row["method"], row["task"], row["metric"]): row for row in report["rows"]}
    methods = ("greedy", "distilled", report["lessons"]["method"], "distilled-greedy")
    asked = dict(_MEASURED)
    for kind, of in _KINDS.items():
        asked |= {(f"{part}_{kind}", metric): f"{what}: {of}" for (part, metric), what in _DRIFT.items()}
    lines = []
    for key, what in asked.items():
        plain, tuned, taught, less = (found.get((method, *key)) for method in methods)
        if tuned is not None:
            lines.append((what, plain, tuned, taught, less))
    return lines


def _short(row: Row) -> str:
    return "" if row is None else f"{row['value']:.3f}"


def _ends(row: Row) -> str:
    return "" if row is None or row["low"] is None else f"{row['value']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def write_report(folder: Path, report: Report, command: str) -> Path:
    """Write report.html from a report's data; returns its path."""
    method, answers, seeds = report["lessons"]["method"], report["answers"], report["seeds"]
    lead = "On pictures that were not learnt from; 95 % intervals by bootstrap over pictures."
    if len(seeds) > 1:
        lead += (
            f" The distilled figures are means over {len(seeds)} trainings; where answers are scored against "
            "labels, these are drawn beside the pictures."
        )
    said = (
        f"{method} answered {answers['train']['answers']} prompts about {answers['train']['pictures']} pictures. The "
        "plain model had decided most answers, word for word; in the others the guard had a choice, and in some it "
        "chose otherwise."
    )
    counts = [(told, *(str(part[key]) for part in answers.values())) for key, told in _COUNTS.items()]
    settings = {key: report[key] for key in ("lessons", "knobs", "recipe", "seeds", "environment") if key in report}
    remarks = (tag("p", remark) for remark in report.get("remarks", ()))
    warned = note(
        "The distilled model is a tuned model, asked plainly. Nothing guards its answers, and on other pictures than "
        "those it learnt from it must be measured anew."
    )
    parts = (
        section("Plain, distilled, guarded", *_scores(report), lead=lead),
        section("What the teacher said", table(("", *answers), counts), lead=said),
        section("Settings", tag("pre", json.dumps(settings, indent=1)), *remarks),
    )
    title, foot = f"Distilling {method} into {report['lessons']['model']}", f"lvlm-guard {report['version']}: {command}"
    made = page(title, warned, *parts, lead=f"A LoRA that answers plainly as the model does under {method}.", foot=foot)
    return write_page(folder / "report.html", made)


def _scores(report: Report) -> Iterator[Html]:
    """Yield a table of what was measured, and one of each training by itself where there are several."""

    def value(row: Row, signed: bool = False) -> object:
        return None if row is None else with_interval(row["value"], row["low"], row["high"], signed=signed)

    yield table(
        ("measured", "plain, greedy", "distilled, plain greedy", report["lessons"]["method"], "distilled − plain"),
        [(what, *map(value, three), value(less, signed=True)) for what, *three, less in side_by_side(report)],
        note="“Where the guard had no say”: answers of which the plain model had decided every token, so that any "
        "change is one for nothing. CHAIR: lower is better. Divergence: Kullback–Leibler, plain to distilled, a token.",
    )
    found = {(row["task"], row["metric"], row["seed"]): row["value"] for row in report.get("by_seed") or ()}
    seeds = report["seeds"]
    if len({seed for _, _, seed in found}) > 1:
        body = [
            (f"{task} {metric}", *(found.get((task, metric, seed)) for seed in seeds))
            for task, metric in dict.fromkeys(key[:2] for key in found)
        ]
        yield table(("distilled", *(f"seed {seed}" for seed in seeds)), body, caption="Each training by itself")
