"""Whether the answers of a run can be scored at all, and what a reader must know before reading the scores.

A run is void where a decoder's answers failed, are missing, empty or cut at the token limit: their scores would
measure the plumbing. lmms-eval scores such answers as wrong ones, and exits 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.report.figures import named
from lvlm_guard.evals.spec.items import YES_NO

Sample = Mapping[str, Any]

FAILED_TEXT = "[LMMS_EVAL_REQUEST_FAILED"  # what lmms-eval's clients answer for a request that failed
MATCHER = "matcher"  # answers yes/no questions only; every other decoder answers all tasks
UNREADABLE = 0.2  # share from which unreadable answers are worth a warning
FEW = 500  # questions below which the smallest difference that can be found is told
CHANGED = 0.1  # share of answers that a guard is taken to change, for that difference
SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a run's answers.

    Args:
        void: sentences; with any of them the run's scores mean nothing (exit code 3).
        warnings: sentences to show above the scores.
    """

    void: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Given:
    """One answer, where it belongs, and what became of it."""

    key: str
    seed: int
    text: str
    ended: bool
    failed: str | None
    truth: Any

    @property
    def where(self) -> str:
        return f"{self.key} (seed {self.seed})" if self.seed else self.key


def verdict(
    samples: Sequence[Sample],
    tasks: Sequence[Mapping[str, Any]],
    decoders: Sequence[Mapping[str, Any]],
    *,
    allow_empty: float = 0.0,
    allow_truncated: float = 0.0,
) -> Verdict:
    """Judge the answers of a run.

    Args:
        samples: rows of `samples.jsonl`.
        tasks, decoders: as `EvalTask.describe()` and `Decoder.describe()` have them.
        allow_empty: share, 0 to 1, of a decoder's answers to a task that may be empty; those within it are a warning.
        allow_truncated: share that may be cut at the token limit.

    Raises:
        DataError: an allowed share is outside 0 to 1.
    """
    for name, share in (("empty", allow_empty), ("truncated", allow_truncated)):
        if not 0 <= share <= 1:
            raise DataError(f"The allowed share of {name} answers lies between 0 and 1 (0.05 for 5 %); got {share}.")
    void: list[str] = []
    warnings: list[str] = []
    for task in tasks:
        asked = [sample for sample in samples if sample["task"] == task["name"]]
        void += _unasked(task, asked)
        for decoder in decoders:
            name, seeds = decoder["name"], int(decoder.get("seeds", 1))
            if name == named(MATCHER, decoder.get("matcher") or "") and task["kind"] not in YES_NO:
                continue
            given = list(_given(asked, name))
            place, total = f"{name} on {task['name']}", len(asked) * seeds
            void += _lost(place, asked, name, seeds, total)
            for sentence, fatal in (
                *_empty(place, given, total, allow_empty),
                *_cut(place, task, given, total, allow_truncated),
            ):
                (void if fatal else warnings).append(sentence)
            warnings += [*_one_word(place, given), *_unreadable(place, task, given)]
        warnings += _few(task, asked)
    warnings += [sentence for decoder in decoders for sentence in _idle(decoder, samples, decoders)]
    return Verdict(void, warnings)


def failed_text(text: str) -> bool:
    """Return whether an answer is the string that lmms-eval's clients put in the place of a failed request."""
    return text.lstrip().startswith(FAILED_TEXT)


def _given(samples: Iterable[Sample], decoder: str) -> Iterator[_Given]:
    for sample in samples:
        texts = sample["answers"].get(decoder, [])
        ended = sample.get("ended", {}).get(decoder) or [True] * len(texts)
        failed = sample.get("failed", {}).get(decoder) or [None] * len(texts)
        for seed, (text, whole, reason) in enumerate(zip(texts, ended, failed, strict=True)):
            yield _Given(str(sample["key"]), seed, text or "", bool(whole), reason, sample.get("truth"))


def _unasked(task: Mapping[str, Any], asked: Sequence[Sample]) -> Iterator[str]:
    there, wanted = len({sample["key"] for sample in asked}), int(task["n"])
    if there < wanted:
        yield (
            f"{task['name']}: {there} of {wanted} items were asked; {wanted - there} are missing. "
            "Give the same command again: it asks for them."
        )


def _lost(place: str, asked: Sequence[Sample], name: str, seeds: int, total: int) -> Iterator[str]:
    short = [sample for sample in asked if len(sample["answers"].get(name, [])) < seeds]
    if short:
        missing = sum(seeds - len(sample["answers"].get(name, [])) for sample in short)
        keys = ", ".join(str(sample["key"]) for sample in short[:SHOWN])
        yield f"{place}: {missing} of {total} answers are missing (first keys: {keys})."
    failed = [one for one in _given(asked, name) if one.failed is not None or failed_text(one.text)]
    if failed:
        told = "; ".join(f"{one.where}: {_short(one.failed or one.text)}" for one in failed[:SHOWN])
        yield (
            f"{place}: {len(failed)} of {total} answers failed ({told}). Give the same command again: it asks for them."
        )


def _empty(place: str, given: Sequence[_Given], total: int, allowed: float) -> Iterator[tuple[str, bool]]:
    found = [one for one in given if one.failed is None and not one.text.strip()]
    if found:
        keys = ", ".join(one.where for one in found[:SHOWN])
        yield _judged(f"{place}: {len(found)} of {total} answers are empty (first keys: {keys})", found, total, allowed)


def _cut(
    place: str, task: Mapping[str, Any], given: Sequence[_Given], total: int, allowed: float
) -> Iterator[tuple[str, bool]]:
    found = [one for one in given if one.failed is None and not one.ended]
    if found:
        told = "; ".join(f"{one.where}: {_tail(one.text)}" for one in found[:SHOWN])
        limit = f"the limit of {task['max_new_tokens']} tokens" if task.get("max_new_tokens") else "the token limit"
        yield _judged(f"{place}: {len(found)} of {total} answers are cut at {limit} ({told})", found, total, allowed)


def _judged(sentence: str, found: Sequence[_Given], total: int, allowed: float) -> tuple[str, bool]:
    fatal = len(found) > allowed * total
    if allowed == 0:
        return f"{sentence}.", True
    return f"{sentence}, {'more than' if fatal else 'within'} the allowed share of {allowed:g}.", fatal


def _one_word(place: str, given: Sequence[_Given]) -> Iterator[str]:
    said = {_bare(one.text) for one in given if one.failed is None}
    truths = {repr(one.truth) for one in given if one.truth is not None}
    if len(given) > 1 and len(said) == 1 and len(truths) != 1 and said != {""}:
        yield f"{place}: all {len(given)} answers are the same, {_short(given[0].text)}, whatever was asked."


def _unreadable(place: str, task: Mapping[str, Any], given: Sequence[_Given]) -> Iterator[str]:
    if task["kind"] not in YES_NO or not given:
        return
    found = [one for one in given if one.failed is None and pope.read(one.text) is None]
    if len(found) > UNREADABLE * len(given):
        told = "; ".join(f"{one.where}: {_short(one.text)}" for one in found[:SHOWN])
        yield (
            f"{place}: {len(found)} of {len(given)} answers can be read as neither yes nor no and count as wrong "
            f"({told})."
        )


def _few(task: Mapping[str, Any], asked: Sequence[Sample]) -> Iterator[str]:
    if task["kind"] not in YES_NO:
        return
    sizes: dict[str, int] = {}
    for sample in asked:
        for row in sample["rows"] or [task["name"]]:
            sizes[row] = sizes.get(row, 0) + 1
    small = {row: n for row, n in sizes.items() if n < FEW}
    if small:
        row, n = min(small.items(), key=lambda pair: pair[1])
        needed = detectable(n)
        found = f"only one of {100 * needed:.1f} points or more" if needed < CHANGED else "none"
        yield (
            f"{task['name']}: {n} questions in {row} are few. Of accuracy differences, if {CHANGED:.0%} of the answers "
            f"change, {found} would be found with 80 % power, at best."
        )


def detectable(n: int, changed: float = CHANGED) -> float:
    """Return the smallest accuracy difference that n paired questions show with 80 % power at the 5 % level.

    Args:
        n: questions, taken as independent (several about one picture are not, so more are needed).
        changed: share of the answers that differ between the two runs.
    """
    return float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(changed / n)


def _idle(
    decoder: Mapping[str, Any], samples: Sequence[Sample], decoders: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    name, plain = decoder["name"], "sample" if decoder.get("sampled") else "greedy"
    # a sweep may hold alpha = 0 on purpose: the point where a guard does nothing
    if not decoder.get("method") or (decoder.get("knobs") or {}).get("alpha") == 0:
        return
    if plain not in {other["name"] for other in decoders} or name == plain:
        return
    both = [s["answers"] for s in samples if name in s["answers"] and plain in s["answers"]]
    if both and all(one[name] == one[plain] for one in both):
        yield (
            f"{name} answered all {len(both)} items exactly as {plain} did: the guard changed nothing. "
            "Check its knobs and its matcher before reading anything into the table."
        )


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return f'"{flat if len(flat) <= 80 else flat[:77] + "..."}"'


def _tail(text: str) -> str:
    flat = " ".join(text.split())
    return f'"{flat if len(flat) <= 40 else "..." + flat[-37:]}"'
