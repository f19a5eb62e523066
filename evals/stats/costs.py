"""What answers cost: model calls and masks, which repeat exactly, and time and memory, which do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_guard.evals.metrics.metric import Array, share
from lvlm_guard.evals.stats.bootstrap import DRAWS, Draws, Estimate, estimate
from lvlm_guard.evals.stats.results import Row, row_of
from lvlm_guard.evals.stats.tally import WORK, Answers, Tally, split_up


def work_rows(tally: Tally, decoders: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield tokens, forwards, those of second branches, and masks: means an answer, of each decoder that was asked."""
    for decoder in decoders:
        given = tally.of(decoder["name"])
        n = sum(int((one.there > 0).sum()) for one in given)
        if n and not decoder.get("derive"):
            work = np.sum([one.work for one in given], axis=0) / n
            for metric, mean in zip(WORK.values(), work.tolist(), strict=True):
                if np.isfinite(mean):  # what was not measured, as at a server, has no row
                    yield row_of(tally, decoder, metric, Estimate(mean), n)


def cost_rows(
    costs: Answers,
    tallies: Mapping[tuple[str, str], Tally],
    decoders: Sequence[Mapping[str, Any]],
    reference: str,
    draws: int = DRAWS,
) -> Iterator[Row]:
    """Yield seconds an answer, their ratio to the reference's on the same pictures, and peak memory.

    `costs` are of `spec.answers.COSTS`; those of tasks and splits that `tallies` lacks are passed over.
    """
    spent: dict[tuple[str, str], dict[str, Array]] = {}  # task -> decoder -> [P, 2], seconds and answers
    peaks: dict[tuple[tuple[str, str], str], float] = {}
    for name, batch in split_up(costs):
        if name not in tallies:
            continue
        tally, seconds = tallies[name], batch["seconds"].to_numpy(zero_copy_only=False)
        peak = batch["peak_mib"].to_numpy(zero_copy_only=False).astype(float)
        for run, chosen, places in tally.by_run(batch):
            if run not in tally.runs or not tally.runs[run].there[places].any():
                continue
            there = tally.runs[run].there[places] > 0  # a request that failed tells no time
            chosen, pictures = chosen[there], tally.picture[places[there]]
            table = spent.setdefault(name, {}).setdefault(run[0], np.zeros((tally.pictures, 2)))
            np.add.at(table, pictures, np.stack([seconds[chosen], np.ones(len(chosen))], -1))
            known = peak[chosen][~np.isnan(peak[chosen])]
            if len(known):
                peaks[name, run[0]] = max(float(known.max()), peaks.get((name, run[0]), -np.inf))
    for name, tables in spent.items():
        for told in (d for d in decoders if d["name"] in tables):
            mine = tables[told["name"]]
            n = int(mine[:, 1].sum())
            found = {"seconds": Estimate(float(mine[:, 0].sum() / n))}
            if reference in tables and (ratio := _ratio(mine, tables[reference], draws)):
                found["time_ratio"] = ratio
            if (name, told["name"]) in peaks:
                found["peak_memory_mib"] = Estimate(peaks[name, told["name"]])
            for metric, value in found.items():
                yield row_of(tallies[name], told, metric, value, n)


def _ratio(ours: Array, theirs: Array, draws: int) -> Estimate | None:
    """Return the ratio of times, each [P, 2] as above, on the pictures that both answered."""
    both = (ours[:, 1] > 0) & (theirs[:, 1] > 0)
    pair = np.stack([share(table[both, 0], table[both, 1]) for table in (ours, theirs)], -1)
    if not len(pair) or not pair[:, 1].sum() > 0:
        return None
    sums = Draws(len(pair), draws=draws).sums({"both": pair})["both"]
    ratio = estimate(share(sums[:, 0], sums[:, 1], np.nan))
    return ratio if len(pair) > 1 else Estimate(ratio.value)
