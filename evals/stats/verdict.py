"""What a gain is held against, and what the numbers say in a word: does it rank better, and did it break the rest?

Controls: some that nobody need ask, and the best control, chosen on calibration items. Verdicts of a method:

    ranks better           AUROC up and accuracy at the matched yes ratio up
    moves the threshold    accuracy up, without both of these; matched accuracy not up
    sharper                a sampled decoder's accuracy up against plain sampling alone, and not against greedy
    ranks worse            AUROC or matched accuracy down, the other not up
    not told apart         everything else

The first that holds is said. "Up" and "down" mean that the 95 % interval of the paired difference to greedy leaves out
zero. Two must be up for praise, one down is enough for blame: the doubt is the method's.

Fewer hallucinations may be bought with less ability (arXiv:2609.01888): MMStar (1,500 questions, answers are letters,
through lmms-eval) must not fall. `--tasks world_pope,...,mmstar` checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array
from lvlm_guard.evals.stats.results import LEAST_MASS, Row, right_of
from lvlm_guard.evals.stats.tally import Tallies, Tally

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
    """Return with which controls decoders are compared, and decoder -> its best control. A control of a decoder is of
    the same decoding, greedy or sampled, and no other decoder's alone. The best is right most often on calibration
    items, `fitted`; the first of equals. Without them there is none: all are compared with."""
    accuracy = {}
    if fitted is not None and fitted.metric.ranked:
        whole, counts = fitted.whole, _counts(fitted)[fitted.whole]
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
    it counts, so that shares are those of the scores."""
    if not tally.of(decoder):
        return []
    one, keys, truths = tally.of(decoder)[0], tally.items.keys, tally.items.truths
    score, mass = ([None if np.isnan(x) else float(x) for x in each] for each in (one.score, one.mass))
    places = np.repeat(np.arange(len(keys)), np.where(tally.whole, _counts(tally) if counted else 1, 0)).tolist()
    columns: dict[str, Any] = {"item": keys, "text": one.texts, "score": score, "mass": mass, "truth": truths}
    return [{name: column[at] for name, column in columns.items()} for at in places]


Word = Literal["ranks better", "moves the threshold", "sharper", "ranks worse", "not told apart"]

GAINS = {"accuracy": "Accuracy", "accuracy_matched": "at the matched yes ratio", "auroc": "AUROC"}
MARGIN = 0.02  # a wide interval is no pass: all of it must lie above -2 points
CHECKS = {"mmstar": "average", "lmms:mmstar": "average"}  # task -> the metric that must not fall


def verdicts(
    rows: Sequence[Row], decoders: Sequence[Mapping[str, Any]], reference: str, controls: Mapping[tuple[str, str], str]
) -> Iterator[Row]:
    """Yield the verdicts of all decoders but plain ones: {"task", "decoder", "role", "verdict", "best_control",
    "sentence"}; `controls` are (row task, decoder) -> its best control."""
    plain = next((d["name"] for d in decoders if d.get("role") == "plain"), None)
    by = {(r["task"], r["decoder"], r["baseline"], r["metric"]): r for r in rows}
    for task in dict.fromkeys(row["task"] for row in rows if row["metric"] == "auroc"):
        for decoder in decoders:
            name, control = decoder["name"], controls.get((task, decoder["name"]))
            gains = [by[key] for metric in GAINS if (key := (task, name, reference, metric)) in by]
            if decoder.get("role") in ("reference", "plain") or len(gains) < len(GAINS):
                continue
            sampled = by.get((task, name, plain, "accuracy")) if decoder.get("sampled") else None
            word = word_of(gains[0], gains[1], gains[2], sampled)
            told = [f"{words} {_gain(row)}" for words, row in zip(GAINS.values(), gains, strict=True)]
            sentence = f"{told[0]} against {reference}; {', '.join(told[1:])}."
            if sampled is not None:
                sentence += f" Accuracy {_gain(sampled)} against {plain}."
            if not control:
                sentence += " There are no calibration items to choose a best control on."
            elif (against := by.get((task, name, control, "accuracy"))) is not None:
                sentence += f" Against {control}, the best control on calibration items, accuracy {_gain(against)}."
            found = {"task": task, "decoder": name, "role": decoder.get("role"), "verdict": word}
            yield found | {"best_control": control, "sentence": sentence}


def word_of(accuracy: Row, matched: Row, auroc: Row, sampled: Row | None = None) -> Word:
    """Return the verdict of differences to greedy, and of a sampled decoder's in accuracy to plain sampling."""
    if _up(matched) and _up(auroc):
        return "ranks better"
    if _up(accuracy) and not _up(matched):
        return "moves the threshold"
    if (_down(matched) and not _up(auroc)) or (_down(auroc) and not _up(matched)):
        return "ranks worse"
    if sampled is not None and _up(sampled) and not _up(accuracy):
        return "sharper"
    return "not told apart"


def capability(rows: Sequence[Row], reference: str) -> Iterator[Row]:
    """Yield the checks of rows: {"task", "decoder", "role", "value", "low", "high", "passed", "sentence"}."""
    for row in rows:
        if row["baseline"] == reference and CHECKS.get(row["task"]) == row["metric"] and row["low"] is not None:
            passed = row["low"] > -MARGIN
            keeps = "keeps" if passed else "is not shown to keep"
            end = "" if passed else f", where the check wants all of it above {-100 * MARGIN:.0f}"
            told = f"{100 * row['value']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            sentence = f"{row['decoder']} {keeps} what {reference} can: {told} on MMStar{end}."
            copied = {name: row[name] for name in ("task", "decoder", "role", "value", "low", "high")}
            yield {**copied, "passed": passed, "sentence": sentence}


def _up(row: Row) -> bool:
    return row["low"] is not None and row["low"] > 0


def _down(row: Row) -> bool:
    return row["high"] is not None and row["high"] < 0


def _gain(row: Row) -> str:
    told = []
    for value in (row[name] for name in ("value", "low", "high")):
        text = "n/a" if value is None else f"{value:+.3f}".replace("-", "−").replace("0.", ".", 1)
        told.append(text if text[1:] != ".000" else "±.000")
    return f"{told[0]} [{told[1]}, {told[2]}]"


OLM_MASS, OLM_GAP = 0.2, 0.5


def threshold(scores: Array, yes: int) -> float:
    """Return the d, nats, above which `yes` of the scores lie: midway between the last of these and the next one."""
    order = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if yes <= 0:
        return float(order[0])
    if yes >= len(order):
        return float(np.nextafter(order[-1], -np.inf))
    return float((order[yes - 1] + order[yes]) / 2)


def olm_says_yes(scores: Array, masses: Array) -> NDArray[np.bool_]:
    """Return where `olm` turns the answer to yes, [n]; scores are log-odds of yes, nats, masses y + n."""
    difference = masses * np.tanh(np.asarray(scores, dtype=np.float64) / 2)  # mass * (p - (1 - p))
    return np.asarray((masses > OLM_MASS) & (np.abs(difference) < OLM_GAP))


def derive(decoder: Mapping[str, Any], greedy: Sequence[Row], calibration: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the answers of a derived decoder to the items of one task.

    `greedy` holds the reference's answers; `calibration` those to the calibration items, each with "truth". `tilt` says
    yes where s > d, with d fitted there so that the share of yes equals that of the labels. `olm`, of arXiv 2504.10020
    (`ustc-hyin/cd_rethink` at 4303279), says Yes where y + n > 0.2 and |y - n| < 0.5; theirs knows one spelling each.
    Raises `DataError` where there are no items to fit on, or no scores.
    """
    name, shift = decoder["name"], 0.0
    scores, masses = _scores(name, greedy)
    if decoder["derive"] == "olm":
        turned = olm_says_yes(scores, masses)
        texts = ["Yes" if yes else str(row["text"]) for yes, row in zip(turned, greedy, strict=True)]
    elif not calibration:
        raise DataError(f"{name} is left out: there are no calibration items to fit it on.")
    else:
        shift = threshold(_scores(name, calibration)[0], sum(row["truth"] == "yes" for row in calibration))
        texts = ["yes" if yes else "no" for yes in scores > shift]
    told = zip(greedy, texts, (scores - shift).tolist(), strict=True)
    return [{**row, "text": text, "score": score} for row, text, score in told]


def _scores(name: str, rows: Sequence[Row]) -> tuple[Array, Array]:
    lacking = next((row["item"] for row in rows if row["score"] is None or row["mass"] is None), None)
    if lacking is not None:
        raise DataError(f"{name} is left out: greedy's answer to item {lacking} has no score to derive it from.")
    scores, masses = (np.array([row[column] for row in rows], dtype=np.float64) for column in ("score", "mass"))
    if len(masses) and masses.mean() < LEAST_MASS:
        told = f"yes and no hold {masses.mean():.2f} of the probability at the first answer token"
        raise DataError(f"{name} is left out: {told}, less than {LEAST_MASS}: scores do not cover what is said.")
    return scores, masses
