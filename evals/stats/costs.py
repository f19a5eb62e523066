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
            means = {metric: float(mean) for metric, mean in zip(WORK.values(), work, strict=True)}
            # what was not measured, as at a server, has no row
            rows += [_row(tally, decoder, metric, Estimate(m), n) for metric, m in means.items() if np.isfinite(m)]
    return rows


def cost_rows(
    costs: Iterable[pa.RecordBatch],
    tallies: Mapping[tuple[str, str], Tally],
    decoders: Sequence[Mapping[str, Any]],
    reference: str,
    draws: int = DRAWS,
) -> list[Row]:
    """Return seconds an answer, their ratio to the reference's on the same pictures, and peak memory.

    `costs` are of `spec.answers.COSTS`; those of tasks and splits that `tallies` lacks are passed over.
    """
    spent: dict[tuple[str, str], dict[str, Array]] = {}  # task -> decoder -> [P, 2], seconds and answers
    peaks: dict[tuple[tuple[str, str], str], float] = {}
    for name, batch in split_up(costs):
        if name not in tallies:
            continue
        tally, seconds = tallies[name], batch["seconds"].to_numpy(zero_copy_only=False)
        peak = batch["peak_mib"].to_numpy(zero_copy_only=False).astype(float)
        for (decoder, seed), chosen, places in tally.by_run(batch):
            if (decoder, seed) not in tally.runs:
                continue
            there = tally.runs[decoder, seed].there[places] > 0  # a request that failed tells no time
            if not there.any():
                continue
            chosen, places = chosen[there], places[there]
            table = spent.setdefault(name, {}).setdefault(decoder, np.zeros((tally.pictures, 2)))
            np.add.at(table, tally.picture[places], np.stack([seconds[chosen], np.ones(len(chosen))], -1))
            known = peak[chosen][~np.isnan(peak[chosen])]
            if len(known):
                peaks[name, decoder] = max(float(known.max()), peaks.get((name, decoder), -np.inf))
    rows = []
    for name, tables in spent.items():
        for told in (d for d in decoders if d["name"] in tables):
            mine = tables[told["name"]]
            n = int(mine[:, 1].sum())
            found = {"seconds": Estimate(float(mine[:, 0].sum() / n))}
            if reference in tables and (ratio := _ratio(mine, tables[reference], draws)):
                found["time_ratio"] = ratio
            if (name, told["name"]) in peaks:
                found["peak_memory_mib"] = Estimate(peaks[name, told["name"]])
            rows += [_row(tallies[name], told, metric, value, n) for metric, value in found.items()]
    return rows


def _ratio(ours: Array, theirs: Array, draws: int) -> Estimate | None:
    """Return the ratio of times, each [P, 2] as above, on the pictures that both answered."""
    both = (ours[:, 1] > 0) & (theirs[:, 1] > 0)
    pair = np.stack([share(table[both, 0], table[both, 1]) for table in (ours, theirs)], -1)
    if not len(pair) or not pair[:, 1].sum() > 0:
        return None
    sums = Draws(len(pair), draws=draws).sums({"both": pair})["both"]
    ratio = estimate(share(sums[:, 0], sums[:, 1], np.nan))
    return ratio if len(pair) > 1 else Estimate(ratio.value)


def _row(tally: Tally, decoder: Mapping[str, Any], metric: str, found: Estimate, n: int) -> Row:
    told = {"task": tally.name, "split": tally.split, "decoder": decoder["name"], "baseline": None}
    told |= {"role": decoder.get("role"), "metric": metric, "direction": "lower"}
    told |= {"value": found.value, "low": found.low, "high": found.high, "p": None, "n": n}
    return told | {"pictures": tally.pictures, "bold": False, "limit": None}
