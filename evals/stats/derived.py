"""Controls that nobody is asked for: what `tilt` and `olm` would answer follows from greedy's scores. numpy alone.

`tilt` says yes where s > d, with d fitted on calibration items so that the share of yes there equals that of their
labels: the gain of a moved threshold, both ways. `olm` is the "output layer modification" of arXiv 2504.10020
(`ustc-hyin/cd_rethink` at 4303279): with y and n the probabilities of yes and no at the first answer token, Yes where
y + n > 0.2 and |y - n| < 0.5, else greedy's own answer. Theirs knows one spelling each and goes on at every later step;
here y and n sum all spellings, and only the first token is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lvlm_guard.evals.errors import DataError

Row = Mapping[str, Any]
Array = npt.NDArray[np.float64]

LEAST_MASS = 0.5  # mean share of the probability on yes and no below which scores do not cover what a model says
OLM_MASS, OLM_GAP = 0.2, 0.5


def threshold(scores: Array, yes: int) -> float:
    """Return the d, nats, above which `yes` of the scores lie: midway between the last of these and the next one."""
    order = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if yes <= 0:
        return float(order[0])
    if yes >= len(order):
        return float(np.nextafter(order[-1], -np.inf))
    return float((order[yes - 1] + order[yes]) / 2)


def olm_says_yes(scores: Array, masses: Array) -> npt.NDArray[np.bool_]:
    """Return where `olm` turns the answer to yes, [n]; scores are log-odds of yes, nats, masses y + n."""
    difference = masses * np.tanh(np.asarray(scores, dtype=np.float64) / 2)  # mass * (p - (1 - p))
    return np.asarray((masses > OLM_MASS) & (np.abs(difference) < OLM_GAP))


def derive(decoder: Row, greedy: Sequence[Row], calibration: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the answers of a derived decoder to the items of one task.

    `greedy` holds the reference's answers; `calibration` those to the calibration items, each with "truth", on which
    `tilt` is fitted. Raises `DataError` where there are none, or no scores to derive anything from.
    """
    name, shift = decoder["name"], 0.0
    scores, masses = _scores(name, greedy)
    if decoder["derive"] == "tilt":
        if not calibration:
            raise DataError(f"{name} is left out: there are no calibration items to fit it on.")
        shift = threshold(_scores(name, calibration)[0], sum(row["truth"] == "yes" for row in calibration))
        texts = ["yes" if yes else "no" for yes in scores > shift]
    elif decoder["derive"] == "olm":
        turned = olm_says_yes(scores, masses)
        texts = ["Yes" if yes else str(row["text"]) for yes, row in zip(turned, greedy, strict=True)]
    else:
        raise DataError(f"{name}: {decoder['derive']!r} is no way of deriving answers; there are tilt and olm.")
    own = {"decoder": name, "role": decoder["role"], "baseline": decoder["baseline"]}
    told = zip(greedy, texts, (scores - shift).tolist(), strict=True)
    return [{**row, **own, "text": text, "score": score} for row, text, score in told]


def _scores(name: str, rows: Sequence[Row]) -> tuple[Array, Array]:
    lacking = next((row["item"] for row in rows if row["score"] is None or row["mass"] is None), None)
    if lacking is not None:
        raise DataError(f"{name} is left out: greedy's answer to item {lacking} has no score to derive it from.")
    scores, masses = (np.array([row[column] for row in rows], dtype=np.float64) for column in ("score", "mass"))
    if len(masses) and masses.mean() < LEAST_MASS:
        raise DataError(
            f"{name} is left out: yes and no hold {masses.mean():.2f} of the probability at the first answer token, "
            f"less than {LEAST_MASS}, so that scores do not cover what the model says."
        )
    return scores, masses
