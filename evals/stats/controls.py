"""What a gain is held against: controls that nobody need ask, and the best control, chosen on other pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.decoders.derived import derive
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.reading import Tallies
from lvlm_guard.evals.stats.results import right_of
from lvlm_guard.evals.stats.tally import Tally

Decoder = Mapping[str, Any]
Pair = tuple[str, str]


def derive_answers(tallies: Tallies, decoder: Decoder, reference: str) -> Iterator[str]:
    """Add a decoder's answers that follow from the reference's, to yes/no tasks; yields why where there are none."""
    for (name, _), tally in tallies.items():
        if not tally.metric.ranked or not tally.of(reference):
            continue
        fitted = calibration(tallies, name)
        try:
            rows = derive(decoder, _as_rows(tally, reference), _as_rows(fitted, reference, True) if fitted else [])
        except DataError as error:
            if not tally.calibrates:
                yield f"{name}: {error}"
            continue
        tally.derive(decoder["name"], {tally.at[row["item"]]: (row["text"], row["score"]) for row in rows})


def calibration(tallies: Tallies, task: str) -> Tally | None:
    """Return the calibration items of a task, None where it has none."""
    return next((tally for (name, _), tally in tallies.items() if name == task and tally.calibrates), None)


def pairs_of(decoders: Sequence[Decoder], reference: str) -> list[Pair]:
    """Return what is compared in any case: all with the reference and baselines, methods with their own controls."""
    pairs = [(d["name"], reference) for d in decoders]
    pairs += [(d["name"], d["baseline"]) for d in decoders if d.get("baseline")]
    pairs += [(d["control_of"], d["name"]) for d in decoders if d.get("control_of")]
    return [pair for pair in pairs if pair[0] != pair[1]]


def controls_of(fitted: Tally | None, decoders: Sequence[Decoder]) -> tuple[list[Pair], dict[str, str]]:
    """Return with which controls decoders are compared, and decoder -> its best control.

    A control of a decoder is of the same decoding, greedy or sampled, and no other decoder's alone. The best is right
    most often on calibration items, `fitted`; the first of equals. Without them there is none: all are compared with.
    """
    accuracy = {}
    if fitted is not None and fitted.metric.ranked:
        whole = fitted.whole
        counts = _counts(fitted)[whole]
        for name in fitted.decoders():
            seeds = [np.average(right[whole], weights=counts) for right in right_of(fitted, name)]
            accuracy[name] = float(np.mean(seeds))
    pairs: list[Pair] = []
    best: dict[str, str] = {}
    for decoder in (one for one in decoders if one.get("role") not in ("reference", "plain")):
        own = [other["name"] for other in decoders if _controls(other, decoder)]
        if found := max((name for name in own if name in accuracy), key=lambda name: accuracy[name], default=None):
            best[decoder["name"]] = found
        if decoder.get("role") != "control" or found:
            pairs += [(decoder["name"], control) for control in ([found] if found else own)]
    return pairs, best


def _controls(other: Decoder, decoder: Decoder) -> bool:
    same = bool(other.get("sampled")) == bool(decoder.get("sampled"))
    own = other.get("control_of") in (None, decoder["name"])
    return other.get("role") == "control" and same and own and other["name"] != decoder["name"]


def _counts(tally: Tally) -> NDArray[np.int64]:
    """Return in how many row tasks each item counts, [N]: POPE asks about an object in view in each of its kinds."""
    return np.array([max(1, len(rows)) for rows in tally.items.rows], np.int64)


def _as_rows(tally: Tally, decoder: str, counted: bool = False) -> list[dict[str, Any]]:
    """Return a decoder's answers to the items that all answered, as `derive` takes them; `counted`: an item as often as
    it counts, so that shares are those of the scores.
    """
    if not tally.of(decoder):
        return []
    one, keys, truths = tally.of(decoder)[0], tally.items.keys, tally.items.truths
    score, mass = ([None if np.isnan(x) else float(x) for x in each] for each in (one.score, one.mass))
    places = np.repeat(np.arange(len(keys)), np.where(tally.whole, _counts(tally) if counted else 1, 0)).tolist()
    return [
        {"item": keys[at], "text": one.texts[at], "score": score[at], "mass": mass[at], "truth": truths[at]}
        for at in places
    ]
