"""Whether answers can be scored at all, and what a reader must know before reading the scores.

A run is void where a decoder's answers are missing, empty or cut at the token limit, or where more than a few failed:
its scores would measure the plumbing. lmms-eval scores such answers as wrong ones, and exits 0. An item that a single
request failed on is left out of every decoder's scores, and said so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.answers import CALIBRATED
from lvlm_guard.evals.spec.items import YES_NO
from lvlm_guard.evals.stats.tally import SHOWN, Fault, Given, Tally

UNREADABLE = 0.2  # share from which unreadable answers are worth a warning
FEW = 500  # questions below which the smallest difference that can be found is told
CHANGED = 0.1  # share of answers that a guard is taken to change, for that difference


@dataclass(frozen=True)
class Allowed:
    """Shares, 0 to 1, of a decoder's answers to a task that may be amiss; those within are a warning."""

    empty: float = 0.0  # answers without a word
    truncated: float = 0.0  # cut at the token limit
    failed: float = 0.01  # requests without an answer; one is allowed in any case, unless it is all there are

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                told = f"answers lies between 0 and 1 (0.05 for 5 %); got {share}"
                raise DataError(f"The allowed share of {name} {told}.")


def validity(
    tallies: Iterable[Tally], decoders: Sequence[Mapping[str, Any]], reference: str, allowed: Allowed | None = None
) -> tuple[list[str], list[str]]:
    """Judge the answers of a run, all counted; `reference` is the decoder that plain, greedy decoding is called.
    Returns sentences that make the run void, so that its scores mean nothing (exit code 3), and warnings."""
    allowed, tallies = allowed or Allowed(), list(tallies)
    void: list[str] = []
    warnings: list[str] = []
    tests = [tally for tally in tallies if not tally.calibrates]
    for tally in tallies:
        for decoder in decoders:
            # a decoder that files name may be anything: what it did answer is judged
            given, yes_no = tally.of(decoder["name"]), tally.task["kind"] in YES_NO
            spared = tally.calibrates and decoder.get("role") not in CALIBRATED
            if decoder.get("derive") or spared or (decoder.get("yes_no_only") and not yes_no and not given):
                continue
            place = f"{decoder['name']} on {tally.name}" + (" (calibration)" if tally.calibrates else "")
            for sentence, fatal in _answers(place, tally, given, decoder, allowed):
                (void if fatal else warnings).append(sentence)
            if tally in tests:
                warnings += _one_word(place, tally, given)
                (lost, first), total = _faults(given, "unreadable"), _answered(given)
                if lost > UNREADABLE * total:
                    told = f"{lost} of {total} answers can be read as neither yes nor no and count as wrong ({first})"
                    warnings.append(f"{place}: {told}.")
        row, n = min(((row, len(at)) for row, at in tally.rows.items()), key=lambda pair: pair[1], default=("", FEW))
        if tally in tests and n < FEW and tally.metric.ranked:
            needed = detectable(n)
            found = f"only one of {100 * needed:.1f} points or more" if needed < CHANGED else "none"
            told = f"{tally.name}: {n} questions in {row} are few. Of accuracy differences, if {CHANGED:.0%} of the"
            warnings.append(f"{told} answers change, {found} would be found with 80 % power, at best.")
    plain = next((d["name"] for d in decoders if d.get("role") == "plain"), None)
    for decoder in decoders:
        warnings += _idle(decoder, plain if decoder.get("sampled") else reference, tests)
    return void, warnings


def detectable(n: int, changed: float = CHANGED) -> float:
    """Return the smallest accuracy difference that n paired questions show with 80 % power at the 5 % level. Questions
    are taken as independent (several about one picture are not, so more are needed); `changed` is the share of the
    answers that differ between the two runs."""
    return float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(changed / n)


def _answers(
    place: str, tally: Tally, given: Sequence[Given], decoder: Mapping[str, Any], allowed: Allowed
) -> Iterator[tuple[str, bool]]:
    """Yield what is missing, failed, empty or cut, and whether that makes the run void."""
    asked = 1 if tally.calibrates else int(decoder.get("seeds") or 1)
    runs = max(asked, len(given))  # files number their seeds as they like
    total = len(tally.items.keys) * runs
    failed, first = _faults(given, "failed")
    missing = total - failed - _answered(given)
    if missing:
        there = np.array([one.there > 0 for one in given]).reshape(-1, len(tally.items.keys)).all(axis=0)
        lost = np.flatnonzero(~there if len(given) == runs else np.ones_like(there))[:SHOWN]
        keys = ", ".join(tally.items.keys[at] for at in lost.tolist())
        yield f"{place}: {missing} of {total} answers are missing (first keys: {keys}).", True
    if failed:
        fatal = failed > max(1, allowed.failed * total) or failed == total
        end = "Give the same command again: it asks for them." if fatal else "Their items are left out of all scores."
        yield f"{place}: {failed} of {total} answers failed ({first}). {end}", fatal
    empty, first = _faults(given, "empty", ", ")
    if empty:
        what = f"{place}: {empty} of {total} answers are empty (first keys: {first})"
        if decoder.get("prompt_suffix"):  # a model may have nothing to say to a control's instruction
            yield f"{what}: unreadable, and so wrong. It is the answer to a prompt of its own.", False
        else:
            yield _judged(what, empty, total, allowed.empty)
    cut, first = _faults(given, "cut")
    if cut:
        most = tally.task.get("max_new_tokens")
        limit = f"the limit of {most} tokens" if most else "the token limit"
        yield _judged(f"{place}: {cut} of {total} answers are cut at {limit} ({first})", cut, total, allowed.truncated)


def _judged(sentence: str, found: int, total: int, allowed: float) -> tuple[str, bool]:
    fatal = found > allowed * total
    told = f", {'more than' if fatal else 'within'} the allowed share of {allowed:g}" if allowed else ""
    return f"{sentence}{told}.", fatal


def _faults(given: Sequence[Given], fault: Fault, between: str = "; ") -> tuple[int, str]:
    told = [one.faults.get(fault, (0, [])) for one in given]
    return sum(n for n, _ in told), between.join([text for _, first in told for text in first][:SHOWN])


def _answered(given: Sequence[Given]) -> int:
    return sum(int((one.there > 0).sum()) for one in given)


def _one_word(place: str, tally: Tally, given: Sequence[Given]) -> Iterator[str]:
    """Tell of a decoder that says the same whatever it is asked; of yes/no answers, whatever their words."""
    whole, ranked = tally.whole, tally.metric.ranked
    truths = {repr(tally.items.truths[at]) for at in np.flatnonzero(whole).tolist()}
    if whole.sum() < 2 or not given or len(truths) == 1:
        return
    said = np.concatenate([(one.said if ranked else one.text)[whole] for one in given])
    if np.all(said == said[0]) and not (ranked and said[0] < 0):
        what = {1: "yes", 0: "no"}[int(said[0])] if ranked else "the same"
        yield f"{place}: all {len(said)} answers are {what}, whatever was asked."


def _idle(decoder: Mapping[str, Any], plain: str | None, tallies: Sequence[Tally]) -> Iterator[str]:
    name = decoder["name"]
    # a sweep may hold alpha = 0 on purpose: the point where a guard does nothing
    if not decoder.get("method") or name == plain or (decoder.get("point") or {}).get("alpha") == 0:
        return
    pairs = [pair for tally in tallies for pair in zip(tally.of(name), tally.of(plain or ""), strict=False)]
    both = [(a.text == b.text)[(a.there > 0) & (b.there > 0)] for a, b in pairs]  # whether answers are the same
    n = sum(map(len, both))
    if n and all(same.all() for same in both):
        told = f"{name} answered all {n} items exactly as {plain} did: the guard changed nothing"
        yield f"{told}. Check its knobs and its matcher before reading anything into the table."
