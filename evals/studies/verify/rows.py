"""From what judges said to result rows: verifiers side by side, and how much better than what they must beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.decoders.decoder import REFERENCE, Decoder
from lvlm_guard.evals.decoders.scores import odds_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.mentions import probabilities, reliability
from lvlm_guard.evals.spec.answers import SCHEMA, Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.studies.verify.asking import Judged
from lvlm_guard.evals.studies.verify.judges import BASELINES, CALIBRATED, TOKEN

METRICS = (
    *("auroc", "accuracy_matched", "brier", "calibration_error", "marked", "mark_precision", "mark_recall"),
    "hallucinated",
)
"""In the order of the rows."""


def check_names(names: Iterable[str]) -> None:
    """Raise `DataError` where a matcher has a name that stands for something else in the rows."""
    for name in names:
        if name in (*BASELINES, TOKEN, REFERENCE):
            raise DataError(f"--matcher {name}: {name!r} is the name of a baseline here; give another one.")


def verifiers_of(judged: Sequence[Judged]) -> list[Decoder]:
    """Return all verifiers, the baselines first; trainings of one name are seeds of one verifier."""
    found: dict[str, Decoder] = {}
    for one in judged:
        for decoder in one.decoders:
            places = (*found[decoder.name].matchers, one.place) if decoder.name in found else (one.place,)
            found[decoder.name] = replace(decoder, seeds=len(places), matchers=places)
        if not one.name:
            about = "the model's own probability of the word"
            found[TOKEN] = Decoder(TOKEN, about, None, role="control", baseline=CALIBRATED)
    return list(found.values())


def table_of_all(judged: Sequence[Judged], named: EvalTask, own: Sequence[float]) -> pa.Table:
    """Return the answers of all verifiers as one table: `judged` to `named`, and the model's `own` probabilities."""
    task, split = named.name, named.split
    token = [
        Answer(task, split, item.key, item.picture, TOKEN, "control", f"p {p:.6f}", CALIBRATED, 0, odds_of(p), 1.0)
        for item, p in zip(named.items, own, strict=True)
    ]
    tables = [table_of(token)]
    place = SCHEMA.get_field_index("seed")
    for one in judged:
        seeds = pa.array([one.training] * len(one.answers), pa.int32())
        tables.append(one.answers.select(SCHEMA.names).set_column(place, SCHEMA.field("seed"), seeds))
    return pa.concat_tables(tables).combine_chunks()


def results_of(
    named: EvalTask, table: pa.Table, verifiers: Sequence[Decoder], matchers: Iterable[str]
) -> dict[str, Any]:
    """Return `stats.score`'s results: each figure with its interval, and differences on the same draws.

    Each verifier less calibrated CLIP, and each matcher less the other baselines.

    Raises:
        DataError: nothing is named, or there is nothing to tell apart.
    """
    true = [item.truth == "yes" for item in named.items]
    if not true:
        raise DataError("No description names an object, so there is nothing to verify.")
    if len(set(true)) == 1:
        how = "true" if true[0] else "hallucinated"
        raise DataError(f"All {len(true)} mentions are {how}, so there is nothing to tell apart: give more pictures.")
    items = ({"task": named.name, "split": named.split} | item.describe() for item in named.items)
    pairs = [(name, other) for name in matchers for other in (*BASELINES[1:], TOKEN)]
    found = score_answers(table, items, [named.describe()], [d.describe() for d in verifiers], pairs=pairs)
    kept = [row for row in found["rows"] if row["metric"] in METRICS and row["value"] is not None]
    kept.sort(key=lambda row: METRICS.index(row["metric"]))
    rows = [row | {"decoder": REFERENCE} if row["metric"] == "hallucinated" else row for row in kept]
    return found | {"rows": rows, "warnings": []}


def reliabilities(table: pa.Table, verifiers: Sequence[Decoder], named: EvalTask) -> dict[str, list[dict[str, float]]]:
    """Return the bins of each verifier that gives probabilities, its trainings together."""
    true = {item.key: item.truth == "yes" for item in named.items}
    found = {}
    for one in verifiers:
        rows = table.filter(pa.compute.equal(table["decoder"], one.name))
        p = probabilities(rows["text"].to_pylist())
        if p is not None:
            found[one.name] = reliability(p, [true[key] for key in rows["item"].to_pylist()])
    return found
