"""From counted answers to result rows: every score with its interval, every difference with its interval and test.

A row is plain data: {"task", "split", "decoder", "baseline", "role", "metric", "direction", "value", "low", "high",
"p", "n", "pictures", "bold", "limit", "dialect"}. "baseline" is null in a value, else the row is decoder less baseline.
"p_holm", "fixed" and "broken" stand where they apply, and "trainings", the value of each, where there are several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.metrics.metric import Array, Score
from lvlm_guard.evals.metrics.yes_no import RANKED, Ranking
from lvlm_guard.evals.stats import ranked
from lvlm_guard.evals.stats.bootstrap import DRAWS, Draws, Estimate, difference, estimate, holm, swap_null
from lvlm_guard.evals.stats.tally import Tally

Row = dict[str, Any]
Decoder = Mapping[str, Any]


def trainings(decoder: Decoder) -> int:
    """Return how often a decoder's adapter or matcher was trained, as `Decoder.describe()` has it; 1 without any."""
    return max(1, len(decoder.get("adapters") or ()), len(decoder.get("matchers") or ()))


def find(rows: Iterable[Row], decoder: str, task: str, metric: str, baseline: str | None = None) -> Row | None:
    """Return the row of a value, or of a difference from a baseline; None where there is none."""
    wanted = (decoder, baseline, task, metric)
    return next((r for r in rows if (r["decoder"], r["baseline"], r["task"], r["metric"]) == wanted), None)


def with_holm(rows: Iterable[Row], reference: str) -> list[Row]:
    """Return the rows with "p_holm" where several decoders are compared with the reference in one task and metric."""
    rows = [dict(row) for row in rows]
    families: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["baseline"] == reference and row["p"] is not None:
            families.setdefault((row["task"], row["metric"]), []).append(row)
    for members in families.values():
        if len(members) > 1:
            for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
                row["p_holm"] = p
    return rows


class Measured:
    """One task as every decoder did it, on the same drawn pictures.

    Args:
        tally: the answers, counted.
        decoders: in the order of the rows, as `Decoder.describe()` has them; those without an answer are left out.
        reference: the decoder that answers turn from (N2P, P2N).
        owners: row task -> how many tasks have it: a name that several share is told apart as "chair@world_chair".
    """

    def __init__(
        self, tally: Tally, decoders: Sequence[Decoder], reference: str, owners: Mapping[str, int], draws: int = DRAWS
    ) -> None:
        self.tally, self.warnings = tally, list(tally.metric.warnings)
        self.decoders = {d["name"]: d for d in decoders if tally.of(d["name"])}
        self.reference = reference if reference in self.decoders else None
        self.draws = Draws(tally.pictures, draws=draws)
        shared = any(owners[row] > 1 for row in tally.rows)
        self._named = {row: f"{row}@{tally.name}" if shared else row for row in tally.rows}
        places = {row: at[tally.whole[at]] for row, at in tally.rows.items()}
        self.places = {row: at for row, at in places.items() if len(at)}
        self.scores = dict(tally.metric.scores())
        self.figures: dict[tuple[str, str, str], Array] = {}  # row, decoder, metric -> [T, 1 + draws]
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
        found = []
        pairs = [pair for pair in dict.fromkeys(pairs) if all(name in self.decoders for name in pair)]
        for row in self._parts:
            for name in self.decoders:
                found += self._values(row, name)
            for ours, theirs in pairs:
                found += self._differences(row, ours, theirs)
        return found

    def tasks(self) -> list[str]:
        """Return the row tasks."""
        return [self._named[row] for row in self._parts]

    def _draw_counts(self, row: str) -> None:
        tally, tables = self.tally, {}
        start, pictures = tally.cells[row]
        for name in self.decoders:
            for number, seeds in enumerate(self._trained(name)):
                cells = tally.sums[seeds, start : start + len(pictures)].astype(np.float64)
                cells = np.mean(tally.metric.finish(cells), axis=0)
                table = np.zeros((tally.pictures, cells.shape[1]))
                table[pictures] = cells
                tables[name, number] = np.hstack([table, self._turned(row, name, seeds)])
        drawn = self.draws.sums(tables)
        each = {name: range(len(self._trained(name))) for name in self.decoders}
        swapped = self.draws.swapped({name: np.mean([tables[name, t] for t in each[name]], axis=0) for name in each})
        for name in self.decoders:
            self._swapped[row, name] = swapped[name]
            self._sums[row, name] = np.stack([drawn[name, t] for t in each[name]])
            for metric, score in self.scores.items():
                self.figures[row, name, metric] = score.of(self._sums[row, name])

    def _trained(self, name: str) -> list[list[int]]:
        """Return the runs of each training; runs of one training are means over seeds."""
        runs = self.tally.seeds(name)
        return [[run] for run in runs] if trainings(self.decoders[name]) > 1 else [runs]

    def _turned(self, row: str, name: str, seeds: Sequence[int]) -> Array:
        """Return how many answers turned to yes and to no against the reference, of each picture, [P, 0 or 2]."""
        if not self.tally.metric.ranked:
            return np.zeros((self.tally.pictures, 0))
        runs, at = list(self.tally.runs.values()), self.places[row]
        plain = self.tally.of(self.reference)[0].said[at] if self.reference else runs[seeds[0]].said[at]
        found = np.zeros((self.tally.pictures, 2))
        for seed in seeds:
            said = runs[seed].said[at]
            for column, (before, after) in enumerate(((0, 1), (1, 0))):
                turned = self.tally.picture[at[(plain == before) & (said == after)]]
                found[:, column] += np.bincount(turned, minlength=self.tally.pictures) / len(seeds)
        return found

    def _rank(self) -> None:
        """Measure what scores rank, for every decoder whose scores can be ranked; say why where they can't."""
        tally, usable = self.tally, []
        for name in self.decoders:
            refused = ranked.why_not(tally, name)
            usable += [name] if refused == "" else []
            if refused:
                self.warnings.append(refused)
                nothing = np.full((1, 1 + self.draws.draws), np.nan)
                self.figures |= {(row, name, metric): nothing for row in self.places for metric in RANKED}
        self.warnings += ranked.bounds(tally, usable)
        ranked.check_kinds(tally, usable)
        yes, runs = tally.yes, list(tally.runs.values())
        for row, at in self.places.items():
            rankings: dict[bytes, Ranking] = {}
            keys: dict[str, list[list[bytes]]] = {name: [] for name in usable}
            for name, seeds in [(decoder, seeds) for decoder in usable for seeds in self._trained(decoder)]:
                scores = [runs[seed].score[at] for seed in seeds]
                keys[name].append([each.tobytes() for each in scores])
                for key, each in zip(keys[name][-1], scores, strict=True):
                    if key not in rankings:  # sampling draws answers, not scores: seeds share them
                        rankings[key] = Ranking(each, yes[at], tally.picture[at])
            figures = self.draws.figures({key: ranking.figures for key, ranking in rankings.items()})
            for name in usable:
                means = np.stack([np.mean([figures[key] for key in training], axis=0) for training in keys[name]])
                self.figures |= {(row, name, metric): means[..., i] for i, metric in enumerate(RANKED)}
            if usable and (yes[at].all() or not yes[at].any()):
                label = "yes" if yes[at][0] else "no"
                self.warnings.append(f"{self._named[row]}: all labels are {label}, so there is no AUROC (n/a).")

    def _join(self) -> None:
        """Put several row tasks together: counts pooled or points summed, ranked figures as the mean over kinds."""
        named = list(self._named.values())
        words = takewhile(lambda column: len(set(column)) == 1, zip(*(row.split("_") for row in named), strict=False))
        every = "_".join([*(column[0] for column in words)] or [self.tally.name]) + "_all"
        self._named[every], self._parts[every] = every, list(self.places)
        self.places[every] = np.concatenate([self.places[row] for row in self._parts[every]])
        for name in self.decoders:
            rows = self._parts[every]
            self._sums[every, name] = np.sum([self._sums[row, name] for row in rows], axis=0)
            self._swapped[every, name] = np.sum([self._swapped[row, name] for row in rows], axis=0)
            for metric, score in self.scores.items():
                summed = score.over == "sum"
                each = [self.figures[row, name, metric] for row in rows]
                self.figures[every, name, metric] = np.sum(each, 0) if summed else score.of(self._sums[every, name])
            for metric in RANKED if (rows[0], name, "auroc") in self.figures else ():
                self.figures[every, name, metric] = np.mean([self.figures[row, name, metric] for row in rows], axis=0)

    def _values(self, row: str, name: str) -> list[Row]:
        found, first = [], name == next(iter(self.decoders))
        for metric, score in self._all_scores().items():
            figure = self.figures.get((row, name, metric))
            if figure is None or (score and (score.only_differences or (score.once and not first))):
                continue
            more = {} if len(figure) == 1 else {"trainings": [_plain(one[0]) for one in figure]}
            found.append(self._row(row, name, None, metric, estimate(figure), score) | more)
        given, at = self.tally.of(name), self.places[row]
        if mass := ranked.mean_mass(given, at):
            found.append(self._row(row, name, None, "mass", Estimate(mass)))
        if (row, name, "auroc") in self.figures:  # the likeliest token can be at odds with the sums over spellings
            apart = np.mean([((one.score[at] > 0) != (one.said[at] == 1)).mean() for one in given])
            found.append(self._row(row, name, None, "score_disagrees", Estimate(float(apart))))
        return found

    def _differences(self, row: str, ours: str, theirs: str) -> list[Row]:
        found = []
        for metric, score in self._all_scores().items():
            a, b = (self.figures.get((row, name, metric)) for name in (ours, theirs))
            if a is None or b is None or (score and (score.once or not score.compared)):
                continue
            if score and score.only_differences:
                turned = self._row(row, ours, theirs, metric, estimate(a), score)
                found += [turned] if theirs == self.reference else []
                continue
            null = self._null(row, ours, theirs, score) if score and len(a) == len(b) == 1 else None
            made = self._row(row, ours, theirs, metric, difference(a, b, null), score)
            if metric == "accuracy" and self.tally.metric.ranked:
                made |= self._fixed(row, ours, theirs)
            if made["value"] is not None:
                found.append(made)
        return found

    def _null(self, row: str, ours: str, theirs: str, score: Score) -> Array:
        parts = self._parts[row] if score.over == "sum" else [row]
        sides = [[(self._sums[p, name][0, 0], self._swapped[p, name]) for name in (ours, theirs)] for p in parts]
        found: Array = np.sum([swap_null(score.of, a, b) for a, b in sides], axis=0)
        return found

    def _fixed(self, row: str, ours: str, theirs: str) -> dict[str, int]:
        """Return how many questions only the one, only the other answers rightly; each counts once."""
        a, b = right_of(self.tally, ours), right_of(self.tally, theirs)
        if len(a) > 1 or len(b) > 1:
            return {}
        at = np.unique(self.places[row])
        return {"fixed": int((a[0] & ~b[0])[at].sum()), "broken": int((b[0] & ~a[0])[at].sum())}

    def _all_scores(self) -> dict[str, Score | None]:
        return {**self.scores, **dict.fromkeys(RANKED)}

    def _row(
        self, row: str, name: str, baseline: str | None, metric: str, found: Estimate, score: Score | None = None
    ) -> Row:
        at = self.places[row]
        n = score.n(self._sums[row, name][0, 0]) if score and score.n else len(at)
        told: Row = {"task": self._named[row], "split": self.tally.split, "decoder": name, "baseline": baseline}
        told |= {"role": self.decoders[name].get("role"), "metric": metric}
        told["direction"] = score.direction if score else RANKED.get(metric, "")
        told |= {part: _plain(getattr(found, part)) for part in ("value", "low", "high")}
        told |= {"p": found.p, "n": int(n), "pictures": len(np.unique(self.tally.picture[at]))}
        told["bold"] = baseline is not None and found.bold
        return told | {"limit": score.limit if score else None, "dialect": score.dialect if score else ""}


def right_of(tally: Tally, decoder: str) -> list[NDArray[np.bool_]]:
    """Return which items a decoder answered rightly, [N] of each seed (yes/no tasks)."""
    return [given.said == tally.yes for given in tally.of(decoder)]


def _plain(value: float | None) -> float | None:
    """Return a number that JSON has; None where it is not defined."""
    return None if value is None or not np.isfinite(value) else float(value)
