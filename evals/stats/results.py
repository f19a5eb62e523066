"""From counted answers to result rows: every score with its interval, every difference with its interval and test.

A row is plain data: {"task", "split", "decoder", "baseline", "role", "metric", "direction", "value", "low", "high",
"p", "n", "pictures", "bold", "limit", "dialect"}. "baseline" is null in a value, else the row is decoder less baseline.
"p_holm", "fixed" and "broken" stand where they apply, and "trainings", the value of each, where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Places, Score
from lvlm_guard.evals.metrics.ranking import RANKED, Ranking
from lvlm_guard.evals.stats.bootstrap import DRAWS, Draws, Estimate, difference, estimate, holm, swap_null
from lvlm_guard.evals.stats.tally import Given, Tally, summed

Row = dict[str, Any]
Decoder = Mapping[str, Any]

RANKINGS = {metric: Score(np.asarray, direction) for metric, direction in RANKED.items()}
"""What is measured of scores rather than counts."""
TOLD = Score(np.asarray, "", compared=False)  # what is told of answers beside their scores
LEAST_MASS = 0.5  # mean share of the probability on yes and no below which scores do not cover what a model says
CENSORED = 0.01  # share of scores of which a server told too little, from which on they are not ranked


def find(rows: Iterable[Row], decoder: str, task: str, metric: str, baseline: str | None = None) -> Row | None:
    """Return the row of a value, or of a difference from a baseline; None where there is none."""
    wanted = (decoder, baseline, task, metric)
    return next((r for r in rows if (r["decoder"], r["baseline"], r["task"], r["metric"]) == wanted), None)


def row_of(tally: Tally, decoder: Decoder, metric: str, found: Estimate, n: int, **more: Any) -> Row:
    """Return a value as a row: of all of a task's items, less of it being better, where `more` says nothing else."""
    told: Row = {"task": tally.name, "split": tally.split, "decoder": decoder["name"], "baseline": None}
    told |= {"role": decoder.get("role"), "metric": metric, "direction": "lower"}
    told |= {part: _plain(getattr(found, part)) for part in ("value", "low", "high")}
    return told | {"p": found.p, "n": n, "pictures": tally.pictures, "bold": False, "limit": None} | more


def with_holm(rows: Iterable[Row], family: Callable[[Row], Hashable | None], several: int = 1) -> None:
    """Give rows "p_holm": their p-values adjusted for being one of a family, where it has `several`; None: of none."""
    families: dict[Hashable, list[Row]] = {}
    for row in rows:
        if row["p"] is not None and (name := family(row)) is not None:
            families.setdefault(name, []).append(row)
    for members in (members for members in families.values() if len(members) >= several):
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = p


class Measured:
    """One task as every decoder did it, on the same drawn pictures. `decoders` are in the order of the rows, those
    without an answer left out; answers turn from the `reference`'s (N2P, P2N); `owners` are row task -> how many tasks
    have it: a name that several share is told apart as "chair@world_chair"."""

    def __init__(
        self, tally: Tally, decoders: Sequence[Decoder], reference: str, owners: Mapping[str, int], draws: int = DRAWS
    ) -> None:
        self.tally, self.warnings = tally, list(tally.metric.warnings)
        self.decoders = {d["name"]: d for d in decoders if tally.of(d["name"])}
        self.reference = reference if reference in self.decoders else None
        self.draws = Draws(tally.pictures, draws=draws)
        shared = any(owners[row] > 1 for row in tally.rows)
        self._named = {row: f"{row}@{tally.name}" if shared else row for row in tally.rows}
        self.places = {row: at for row, at in tally.places.items() if len(at)}
        self.scores: dict[str, Score] = dict(tally.metric.scores())
        self.figures: dict[tuple[str, str, str], Array] = {}  # row, decoder, metric -> [T, 1 + draws]
        self._trainings: dict[str, list[list[Given]]] = {}  # runs of one training are means over seeds
        for name, d in self.decoders.items():
            several = max(len(d.get("adapters") or ()), len(d.get("matchers") or ())) > 1
            self._trainings[name] = [[run] for run in tally.of(name)] if several else [tally.of(name)]
        self._sums: dict[tuple[str, str], Array] = {}  # row, decoder -> [T, 1 + draws, k]
        self._swapped: dict[tuple[str, str], Array] = {}  # row, decoder -> [draws, k]
        self._parts: dict[str, list[str]] = {row: [row] for row in self.places}
        for row in self.places:
            self._draw_counts(row)
        if tally.metric.ranked:
            self._rank()
        if tally.metric.joined and len(self.places) > 1:
            self._join()

    def rows(self, pairs: Iterable[tuple[str, str]]) -> list[Row]:
        """Return the values of every decoder, then the differences of those pairs of which both answered."""
        pairs = [pair for pair in dict.fromkeys(pairs) if all(name in self.decoders for name in pair)]
        found: list[Row] = []
        for row in self._parts:
            for name in self.decoders:
                found += self._values(row, name)
            for ours, theirs in pairs:
                found += self._differences(row, ours, theirs)
        return found

    def tasks(self) -> list[str]:
        return [self._named[row] for row in self._parts]

    def _draw_counts(self, row: str) -> None:
        tables, tally = {}, self.tally
        for name, trainings in self._trainings.items():
            for number, runs in enumerate(trainings):
                counts = np.mean([tally.metric.finish(tally.sums(row, run)) for run in runs], axis=0)
                tables[name, number] = np.hstack([counts, *([self._turned(row, runs)] if tally.metric.ranked else [])])
        drawn = self.draws.sums(tables)
        each = {name: [(name, number) for number in range(len(own))] for name, own in self._trainings.items()}
        means = {name: np.mean([tables[one] for one in own], axis=0) for name, own in each.items()}
        swapped = self.draws.swapped(means)
        for name, own in each.items():
            self._swapped[row, name] = swapped[name]
            self._sums[row, name] = np.stack([drawn[one] for one in own])
            for metric, score in self.scores.items():
                self.figures[row, name, metric] = score.of(self._sums[row, name])

    def _turned(self, row: str, runs: Sequence[Given]) -> Array:
        """Return how many answers turned to yes and to no against the reference, of each picture, [P, 2]."""
        at, tally = self.places[row], self.tally
        plain = (tally.of(self.reference) if self.reference else runs)[0].said[at]
        found = np.zeros((tally.pictures, 2))
        for said in (run.said[at] for run in runs):
            turned = np.stack([(plain == 0) & (said == 1), (plain == 1) & (said == 0)], axis=-1)
            found += summed(turned, tally.picture[at], tally.pictures) / len(runs)
        return found

    def _rank(self) -> None:
        tally, usable = self.tally, {}
        for name, trainings in self._trainings.items():
            refused = _why_not_ranked(tally, name)
            if refused == "":
                usable[name] = trainings
            elif refused:
                self.warnings.append(refused)
                nothing = np.full((1, 1 + self.draws.draws), np.nan)
                self.figures |= {(row, name, metric): nothing for row in self.places for metric in RANKED}
        bounds = {name: sum(run.censored for run in tally.of(name)) for name in usable}
        told = "scores are bounds: the server hid yes or no."
        self.warnings += [f"{name} on {tally.name}: {n} {told}" for name, n in bounds.items() if n]
        after = {name: any(np.isinf(one.score[tally.whole]).any() for one in tally.of(name)) for name in usable}
        if len(set(after.values())) > 1:
            cut, uncut = (", ".join(name for name in after if after[name] == is_cut) for is_cut in (True, False))
            told = f"both kinds of score: those of {cut} are after a cut (some are infinite), those of {uncut} before"
            raise DataError(f"{tally.name} has {told}. Give those before the cut for all, or leave them out.")
        for row, at in self.places.items():
            # sampling draws answers, not scores: seeds share them
            keys = {name: [[run.score[at].tobytes() for run in runs] for runs in of] for name, of in usable.items()}
            each = {key: key for of in keys.values() for runs in of for key in runs}
            rankings = {k: Ranking(np.frombuffer(k, np.float32), tally.yes[at], tally.picture[at]) for k in each}
            figures = self.draws.figures({key: ranking.figures for key, ranking in rankings.items()})
            for name, of in keys.items():
                means = np.stack([np.mean([figures[key] for key in runs], axis=0) for runs in of])
                self.figures |= {(row, name, metric): means[..., i] for i, metric in enumerate(RANKED)}
            if usable and len(set(tally.yes[at])) == 1:
                label = "yes" if tally.yes[at][0] else "no"
                self.warnings.append(f"{self._named[row]}: all labels are {label}, so there is no AUROC (n/a).")

    def _join(self) -> None:
        """Put several row tasks together: counts pooled or points summed, ranked figures as the mean over kinds."""
        named, rows = list(self._named.values()), list(self.places)
        words = takewhile(lambda column: len(set(column)) == 1, zip(*(row.split("_") for row in named), strict=False))
        every = "_".join([*(column[0] for column in words)] or [self.tally.name]) + "_all"
        self._named[every], self._parts[every] = every, rows
        self.places[every] = np.concatenate([self.places[row] for row in rows])
        for name in self.decoders:
            self._sums[every, name] = np.sum([self._sums[row, name] for row in rows], axis=0)
            self._swapped[every, name] = np.sum([self._swapped[row, name] for row in rows], axis=0)
            for metric, score in self.scores.items():
                summed = score.over == "sum"
                each = [self.figures[row, name, metric] for row in rows]
                self.figures[every, name, metric] = np.sum(each, 0) if summed else score.of(self._sums[every, name])
            for metric in RANKED if (rows[0], name, "auroc") in self.figures else ():
                self.figures[every, name, metric] = np.mean([self.figures[row, name, metric] for row in rows], axis=0)

    def _values(self, row: str, name: str) -> Iterator[Row]:
        first = name == next(iter(self.decoders))
        for metric, score in {**self.scores, **RANKINGS}.items():
            figure = self.figures.get((row, name, metric))
            if figure is None or score.only_differences or (score.once and not first):
                continue
            more = {} if len(figure) == 1 else {"trainings": [_plain(one[0]) for one in figure]}
            yield self._row(row, name, None, metric, estimate(figure), score) | more
        given, at = self.tally.of(name), self.places[row]
        if mass := _mean_mass(given, at):
            yield self._row(row, name, None, "mass", Estimate(mass), TOLD)
        if (row, name, "auroc") in self.figures:  # the likeliest token can be at odds with the sums over spellings
            apart = np.mean([((one.score[at] > 0) != (one.said[at] == 1)).mean() for one in given])
            yield self._row(row, name, None, "score_disagrees", Estimate(float(apart)), TOLD)

    def _differences(self, row: str, ours: str, theirs: str) -> Iterator[Row]:
        for metric, score in {**self.scores, **RANKINGS}.items():
            a, b = (self.figures.get((row, name, metric)) for name in (ours, theirs))
            if a is None or b is None or score.once or not score.compared:
                continue
            if score.only_differences:
                if theirs == self.reference:
                    yield self._row(row, ours, theirs, metric, estimate(a), score)
                continue
            null = None
            if metric in self.scores and len(a) == len(b) == 1:
                parts = self._parts[row] if score.over == "sum" else [row]
                sides = [[(self._sums[p, of][0, 0], self._swapped[p, of]) for of in (ours, theirs)] for p in parts]
                null = np.sum([swap_null(score.of, *both) for both in sides], axis=0)
            made = self._row(row, ours, theirs, metric, difference(a, b, null), score)
            right, other = right_of(self.tally, ours), right_of(self.tally, theirs)
            if metric == "accuracy" and self.tally.metric.ranked and len(right) == len(other) == 1:
                at = np.unique(self.places[row])  # each question counts once
                made["fixed"] = int((right[0] & ~other[0])[at].sum())
                made["broken"] = int((other[0] & ~right[0])[at].sum())
            if made["value"] is not None:
                yield made

    def _row(self, row: str, name: str, baseline: str | None, metric: str, found: Estimate, score: Score) -> Row:
        at = self.places[row]
        n = int(score.n(self._sums[row, name][0, 0])) if score.n else len(at)
        more = {"limit": score.limit, "dialect": score.dialect, "direction": score.direction}
        more |= {"pictures": len(np.unique(self.tally.picture[at])), "bold": baseline is not None and found.bold}
        more |= {"task": self._named[row], "baseline": baseline}
        return row_of(self.tally, self.decoders[name], metric, found, n, **more)


def right_of(tally: Tally, decoder: str) -> list[NDArray[np.bool_]]:
    """Return which items a decoder answered rightly, [N] of each seed (yes/no tasks)."""
    return [given.said == tally.yes for given in tally.of(decoder)]


def _why_not_ranked(tally: Tally, decoder: str) -> str | None:
    """Return why a decoder's scores can't be ranked; "" where they can, None where it has none."""
    given = tally.of(decoder)
    lacking = sum(int(np.isnan(one.score[tally.whole]).sum()) for one in given)
    total = len(given) * int(tally.whole.sum())
    if lacking == total:
        return None
    mass, censored = _mean_mass(given), sum(one.censored for one in given)
    if lacking:
        why = f"{lacking} of {total} answers have no score"
    elif censored > CENSORED * total:
        why = f"the server told too little for {censored} of {total} scores (more likely tokens hid yes or no)"
    elif mass is not None and mass < LEAST_MASS:
        why = f"yes and no hold {mass:.2f} of the probability at the first token, which is less than {LEAST_MASS}"
    else:
        return ""
    return f"{decoder} on {tally.name}: {why}, so there is no AUROC, no matched accuracy and no tilt (n/a)."


def _mean_mass(given: Sequence[Given], at: Places | slice = slice(None)) -> float | None:
    mass = np.concatenate([one.mass[at] for one in given])
    known = mass[~np.isnan(mass)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def _plain(value: float | None) -> float | None:
    """Return a number that JSON has; None where it is not defined."""
    return None if value is None or not np.isfinite(value) else float(value)
