"""What answers cost: model calls and masks, which repeat exactly, and time and memory, which do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lvlm_guard.evals.metrics.metric import Array, share
from lvlm_guard.evals.stats.bootstrap import DRAWS, Draws, Estimate, estimate
from lvlm_guard.evals.stats.reading import split_up
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.tally import WORK, Tally


def work_rows(tally: Tally, decoders: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return tokens, forwards, those of second branches, and masks: means an answer, of each decoder that was asked."""
    rows = []
    for decoder in decoders:
        given = tally.of(decoder["name"])
        n = sum(int((one.there > 0).sum()) for one in given)
        if n and not decoder.get("derive"):
            work = np.sum([one.work for one in given], axis=0) / n
            rows += [_row(tally, decoder, m, Estimate(float(v)), n) for m, v in zip(WORK.values(), work, strict=True)]
    return rows


def cost_rows(
    costs: Iterable[pa.RecordBatch],
    tallies: Mapping[tuple[str, str], Tally],
    decoders: Sequence[Mapping[str, Any]],
    reference: str,
    draws: int = DRAWS,
) -> list[Row]:
    """Return seconds an answer, their ratio to the reference's on the same pictures, and peak memory.

    Args:
        costs: of `spec.answers.COSTS`.
        tallies: task and split -> what was asked, and is reported.
        decoders: as `Decoder.describe()` has them.
        reference: whose time is 1.
        draws: of the bootstrap over pictures, which the ratio's interval is from.
    """
    spent: dict[tuple[str, str], dict[str, Array]] = {}  # decoder -> [P, 2], seconds and answers
    peaks: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, batch in split_up(costs):
        if name not in tallies:
            continue
        tally = tallies[name]
        seconds = batch["seconds"].to_numpy(zero_copy_only=False)
        peak = batch["peak_mib"].to_numpy(zero_copy_only=False).astype(float)
        for (decoder, _), chosen, places in tally.by_run(batch):
            table = spent.setdefault(name, {}).setdefault(decoder, np.zeros((tally.pictures, 2)))
            np.add.at(table, tally.picture[places], np.stack([seconds[chosen], np.ones(len(chosen))], -1))
            known = peak[chosen][~np.isnan(peak[chosen])]
            if len(known):
                peaks.setdefault(name, {}).setdefault(decoder, []).append(float(known.max()))
    rows = []
    for name, tables in spent.items():
        tally = tallies[name]
        means = {decoder: share(table[:, :1], table[:, 1:]) for decoder, table in tables.items()}
        for told in (d for d in decoders if d["name"] in tables):
            mine = tables[told["name"]]
            n = int(mine[:, 1].sum())
            rows.append(_row(tally, told, "seconds", Estimate(float(mine[:, 0].sum() / n)), n))
            if reference in tables:
                both = (mine[:, 1] > 0) & (tables[reference][:, 1] > 0)
                pair = np.hstack([means[told["name"]][both], means[reference][both]])
                if len(pair) and pair[:, 1].sum() > 0:
                    sums = Draws(len(pair), draws=draws).sums({"both": pair})["both"]
                    ratio = estimate(share(sums[:, 0], sums[:, 1], np.nan))
                    rows.append(_row(tally, told, "time_ratio", ratio if len(pair) > 1 else Estimate(ratio.value), n))
            if told["name"] in peaks.get(name, {}):
                most = max(peaks[name][told["name"]])
                rows.append(_row(tally, told, "peak_memory_mib", Estimate(most), n))
    return rows


def _row(tally: Tally, decoder: Mapping[str, Any], metric: str, found: Estimate, n: int) -> Row:
    told = {"task": tally.name, "split": tally.split, "decoder": decoder["name"], "baseline": None}
    told |= {"role": decoder.get("role"), "metric": metric, "direction": "lower"}
    told |= {"value": found.value, "low": found.low, "high": found.high, "p": None, "n": n}
    return told | {"pictures": tally.pictures, "bold": False, "limit": None}
