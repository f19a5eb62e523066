"""Scores of lmms-eval's tasks, by the tasks' own functions, and what each picture does to them.

A task's score need not be a mean (F1, CHAIR_i, MME's pairs). Each sample gets a number for each metric so that their
mean is lmms-eval's score, and their spread over pictures that of the score: the influence of pictures by leaving them
out, in groups where there are many (the jackknife; Efron and Stein, Annals of Statistics 9(3), 1981). Intervals and
paired tests then follow as for any mean. Only this kind of task needs lmms-eval, and loads it to count answers.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Batch, Direction, Items, Metric, Score, share

PREFIX = "lmms:"  # of names that this package has too
COMMAND_LINE_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'  # it takes them out, unasked
GROUPS, FEWEST = 200, 20  # groups of pictures that are left out in turn: usually, and where a score is slow
PATIENCE = 60.0  # longest that leaving out `GROUPS` groups may take for one score, s


class Stock(Metric):
    """A task of lmms-eval: its own metrics, "words", the length of the answer, and of yes/no questions "accuracy",
    "yes_ratio" and "unreadable" as we read answers. A metric that is not defined for some decoder's answers (CHAIR_i of
    captions that name nothing) is left out, and a warning says so.
    """

    whole = True
    source: Any = None  # lmms-eval's task, loaded when answers are counted

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self._metrics: list[str] = []
        self._undefined: set[str] = set()

    def count(self, batch: Batch) -> Array:
        """Return a number for each metric, and whether the answer has it, [B, 2 metrics]. Raises `DataError` where the
        task's own scoring fails, or gives other metrics than before."""
        # a score may depend on the order; lmms-eval's is that of the documents
        order = sorted(range(len(batch.places)), key=lambda i: int(self.items.keys[batch.places[i]]))
        numbers = self._numbers(batch.places[order].tolist(), [batch.texts[i] for i in order])
        self._metrics = self._metrics or list(numbers)
        if differing := sorted(set(numbers) ^ set(self._metrics)):
            told = f"some decoders have {', '.join(differing)}, others lack it"
            raise DataError(f"{self.name}: {told}: they can't be compared.")
        table = np.stack([numbers[metric] for metric in self._metrics], axis=-1)
        return np.hstack([np.nan_to_num(table), np.isfinite(table)])[np.argsort(order)]

    def scores(self) -> Mapping[str, Score]:
        """Return the means of all metrics; which way is better is what lmms-eval says."""
        up = {"accuracy": True, "unreadable": False} | self.task["about"].get("metrics", {})
        ways: dict[Any, Direction] = {None: "", True: "higher", False: "lower"}
        return {
            metric: _mean(at, len(self._metrics), ways[up.get(metric.partition(",")[0])])
            for at, metric in enumerate(self._metrics)
            if metric not in self._undefined
        }

    def _numbers(self, places: Sequence[int], texts: Sequence[str]) -> dict[str, Array]:
        """Return metric -> a number for each answer, NaN where it has none."""
        from lvlm_guard.evals.lmms.index import load, quiet

        keys, pictures = [self.items.keys[i] for i in places], np.array([self.items.pictures[i] for i in places])
        found = {"words": np.array([len(text.split()) for text in texts], float)}
        truths = np.array([str(self.items.truths[i]).strip().lower() for i in places])
        if set(truths) <= {"yes", "no"}:
            said = np.array([pope.read(text) or "" for text in texts])
            ours = {"accuracy": said == truths, "yes_ratio": said == "yes", "unreadable": said == ""}
            found |= {metric: values.astype(float) for metric, values in ours.items()}
        try:
            with quiet():
                if self.source is None:
                    name = self.name.removeprefix(PREFIX)
                    self.source = load(name, tuple(self.task["about"].get("include", ())), [])[name]
                for metric, values in stock_results(self.source, keys, texts).items():
                    has = [i for i, value in enumerate(values) if value is not None]
                    aggregate = self.source.aggregation()[metric.partition(",")[0]]
                    found[metric] = np.full(len(places), np.nan)  # the task's own, also where it has one of our names
                    found[metric][has] = spread(aggregate, [values[i] for i in has], pictures[has].tolist())
                    if np.isnan(found[metric][has]).any() and metric not in self._undefined:
                        self._undefined.add(metric)
                        told = "is not defined for some decoder's answers (0 / 0), so it is left out"
                        self.warnings.append(f"{self.name}: {metric} {told}.")
        except Exception as error:
            told = f"fails on these answers ({type(error).__name__}: {error})"
            raise DataError(f"lmms-eval's own scoring of {self.name} {told}: eval score tries again.") from error
        return found


def _mean(at: int, metrics: int, direction: Direction) -> Score:
    return Score(lambda c: share(c[..., at], c[..., metrics + at]), direction, n=lambda c: c[..., metrics + at])


def check_scorable(name: str, source: Any) -> None:
    """Raise `DataError` where a task of lmms-eval has a score that takes arguments of its command line (MMBench's)."""
    for metric, aggregate in source.aggregation().items():
        if "args" in inspect.signature(aggregate).parameters:
            told = "needs the arguments of lmms-eval's command line: run stock lmms-eval with --model lvlm_guard"
            raise DataError(f"The task {name} can't be scored here: its {metric} {told}.")


def stock_results(source: Any, keys: Sequence[str], answers: Sequence[str]) -> dict[str, list[Any]]:
    """Return what a task makes of each answer, as lmms-eval's evaluator does: metric -> a result or None for each.
    `source` is lmms-eval's task, `keys` are its documents, in order, each with its answer."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

    told = {"task": source.config.task, "repeats": 1}
    requests = [
        Instance("generate_until", (), 0, metadata={**told, "doc_id": int(key)}, resps=[answer])
        for key, answer in zip(keys, answers, strict=True)
    ]
    for ensemble in source._filters:
        ensemble.apply(requests, source.task_docs)
    tags = parse_reasoning_tags_config(COMMAND_LINE_TAGS, source.config.reasoning_tags)
    docs = source.eval_docs_no_media
    results: dict[str, list[Any]] = {}
    for place, request in enumerate(requests):
        for kind, answer in request.filtered_resps.items():
            text = strip_reasoning_tags(answer, tags) if tags and isinstance(answer, str) else answer
            for metric, value in source.process_results(docs[int(keys[place])], [text]).items():
                if metric in source.aggregation():
                    name = metric if len(request.filtered_resps) == 1 else f"{metric},{kind}"
                    results.setdefault(name, [None] * len(requests))[place] = value
    return results


def spread(aggregate: Callable[..., Any], values: Sequence[Any], pictures: Sequence[str]) -> list[float]:
    """Return a number for each value: their mean is `aggregate(values)`, their spread over pictures that score's.
    `aggregate` is a task's own function of all results. Where it divides by zero (CHAIR_i of captions that name
    nothing) they are NaN; raises `DataError` where it gives no number."""
    began = time.monotonic()
    whole = _score(aggregate, values)
    slow = (time.monotonic() - began) * GROUPS > PATIENCE
    plain: list[Any] = [value.get("score") if isinstance(value, Mapping) else value for value in values]
    if plain and all(isinstance(value, int | float | np.number) for value in plain):
        for scale in (1.0, 100.0):
            if math.isclose(scale * sum(map(float, plain)) / len(plain), whole, rel_tol=1e-12, abs_tol=1e-12):
                return [scale * float(value) for value in plain]
    number = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    if len(number) < 2 or math.isnan(whole):
        return [whole] * len(values)
    groups = min(len(number), FEWEST if slow else GROUPS)
    picture = np.array([number[name] for name in pictures])
    group = (picture % groups).tolist()
    kept = ([v for v, of in zip(values, group, strict=True) if of != out] for out in range(groups))
    without = np.array([_score(aggregate, each) for each in kept])
    without[np.isnan(without)] = whole
    influence = (groups - 1) * (without.mean() - without)
    # a group's influence is its pictures' together; each gets a share whose square sums to that of the group
    each = influence / np.sqrt(np.bincount(np.arange(len(number)) % groups))
    moved = each[group] / np.bincount(picture)[picture]
    numbers: list[float] = (whole + len(values) / groups * (moved - moved.mean())).tolist()
    return numbers


def _score(aggregate: Callable[..., Any], values: Sequence[Any]) -> float:
    try:
        return float(aggregate(list(values)))
    except ZeroDivisionError:
        return math.nan
    except TypeError as error:
        raise DataError(f"a score is no number: {error}") from error
