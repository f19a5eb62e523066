"""One word a method and yes/no task: does it rank better, or has it moved the threshold?

    ranks better           AUROC up and accuracy at the matched yes ratio up
    moves the threshold    accuracy up, without both of these; matched accuracy not up
    sharper                a sampled decoder's accuracy up against plain sampling alone, and not against greedy
    ranks worse            AUROC or matched accuracy down, the other not up
    not told apart         everything else

The first that holds is said. "Up" and "down" mean that the 95 % interval of the paired difference to greedy leaves out
zero. Two must be up for praise, one down is enough for blame: the doubt is the method's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lvlm_guard.evals.stats.results import Row

Word = Literal["ranks better", "moves the threshold", "sharper", "ranks worse", "not told apart"]
Verdict = dict[str, Any]


def verdicts(
    rows: Sequence[Row], decoders: Sequence[Mapping[str, Any]], reference: str, controls: Mapping[tuple[str, str], str]
) -> list[Verdict]:
    """Return the verdicts of all decoders but plain ones: {"task", "decoder", "role", "verdict", "best_control",
    "sentence"}; `controls` are (row task, decoder) -> its best control.
    """
    plain = next((d["name"] for d in decoders if d.get("role") == "plain"), None)
    by = {(r["task"], r["decoder"], r["baseline"], r["metric"]): r for r in rows}
    found = []
    for task in dict.fromkeys(row["task"] for row in rows if row["metric"] == "auroc"):
        for decoder in decoders:
            name = decoder["name"]
            gains = {m: by.get((task, name, reference, m)) for m in ("accuracy", "accuracy_matched", "auroc")}
            if decoder.get("role") in ("reference", "plain") or not all(gains.values()):
                continue
            sampled = by.get((task, name, plain, "accuracy")) if decoder.get("sampled") else None
            word = word_of(gains["accuracy"], gains["accuracy_matched"], gains["auroc"], sampled)
            control = controls.get((task, name))
            told = {"task": task, "decoder": name, "role": decoder.get("role"), "verdict": word}
            against = by.get((task, name, control, "accuracy")) if control else None
            sentence = _sentence(gains, reference, against, control, sampled)
            found.append(told | {"best_control": control, "sentence": sentence})
    return found


def word_of(accuracy: Row | None, matched: Row | None, auroc: Row | None, sampled: Row | None = None) -> Word:
    """Return the verdict of differences to greedy, and of a sampled decoder's in accuracy to plain sampling."""
    if _up(matched) and _up(auroc):
        return "ranks better"
    if _up(accuracy) and not _up(matched):
        return "moves the threshold"
    if (_down(matched) and not _up(auroc)) or (_down(auroc) and not _up(matched)):
        return "ranks worse"
    if _up(sampled) and not _up(accuracy):
        return "sharper"
    return "not told apart"


def _up(row: Row | None) -> bool:
    return row is not None and row["low"] is not None and row["low"] > 0


def _down(row: Row | None) -> bool:
    return row is not None and row["high"] is not None and row["high"] < 0


def _sentence(
    gains: Mapping[str, Row | None], reference: str, control: Row | None, best: str | None, sampled: Row | None
) -> str:
    names = {"accuracy": "Accuracy", "accuracy_matched": "at the matched yes ratio", "auroc": "AUROC"}
    told = [f"{names[metric]} {_gain(row)}" for metric, row in gains.items() if row is not None]
    said = f"{told[0]} against {reference}; {', '.join(told[1:])}."
    if sampled is not None:
        said += f" Accuracy {_gain(sampled)} against {sampled['baseline']}."
    if control is not None:
        return f"{said} Against {best}, the best control on calibration items, accuracy {_gain(control)}."
    return said if best else f"{said} There are no calibration items to choose a best control on."


def _gain(row: Row) -> str:
    low, high = (_signed(row[name]) for name in ("low", "high"))
    return f"{_signed(row['value'])} [{low}, {high}]"


def _signed(value: float | None) -> str:
    if value is None:
        return "n/a"
    text = f"{abs(value):.3f}"
    sign = "−" if value < 0 and float(text) else "+" if float(text) else "±"
    return sign + (text[1:] if text.startswith("0") else text)
