"""Scores of lmms-eval's tasks, by the tasks' own functions, and what each picture does to them.

    samples = with_metrics(tasks, samples)  # then `scoring` averages them

A task's score need not be a mean (F1, CHAIR_i, MME's pairs). Each sample gets a number for each metric so that their
mean is lmms-eval's score, and so that their spread over pictures is the score's: the influence of a picture by leaving
it out (the jackknife; Efron and Stein, Annals of Statistics 9(3), 1981). Intervals and paired tests then follow as for
any mean. Where the score is a mean of numbers anyway, these are the numbers themselves.
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
from lvlm_guard.evals.lmms.index import quiet

Sample = dict[str, Any]
Numbers = list[dict[str, float]]
"""Metric -> number, for each sample."""

COMMAND_LINE_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
"""What lmms-eval's command line takes out of answers, unasked."""

PATIENCE = 120.0
"""Longest that leaving out each picture in turn may take for one score, s."""


def with_metrics(tasks: Sequence[Any], samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Return the samples, those of lmms-eval's tasks with "metrics": decoder -> metric -> number; and what to know.

    Besides the task's own metrics each has "words", the length of the answer, and yes/no questions have "accuracy",
    "yes_ratio" and "unreadable" as this package reads answers: stock POPE takes "Yes." for wrong, and its yes ratio is
    that of the labels. Numbers of several seeds are averaged. A metric that is not defined for some decoder's answers
    (CHAIR_i of captions that name nothing) is left out, and a warning says so.

    Raises:
        DataError: the task's own scoring fails.
    """
    found, warnings = list(samples), []
    for task in tasks:
        source = getattr(task, "source", None)
        places = [place for place, sample in enumerate(samples) if sample["task"] == task.name]
        if source is None or any(_failed(samples[place]) for place in places):
            continue
        # a score may depend on the order; lmms-eval's is that of the documents
        places.sort(key=lambda place: int(samples[place]["key"]))
        told = {
            decoder: _decoder(task.name, source, [samples[place] for place in places], decoder)
            for decoder in samples[places[0]]["answers"]
        }
        for metric, decoders in _undefined(told).items():
            warnings.append(
                f"{task.name}: {metric} is not defined for the answers of {', '.join(decoders)} (lmms-eval divides by "
                "zero), so it is left out."
            )
            for numbers in told.values():
                for number in numbers:
                    number.pop(metric, None)
        for index, place in enumerate(places):
            found[place] = samples[place] | {"metrics": {decoder: told[decoder][index] for decoder in told}}
    return found, warnings


def _undefined(told: Mapping[str, Numbers]) -> dict[str, list[str]]:
    """Return the metrics that are not defined for some decoder's answers, and the decoders."""
    found: dict[str, dict[str, None]] = {}
    for decoder, numbers in told.items():
        for number in numbers:
            for metric in (metric for metric, value in number.items() if math.isnan(value)):
                found.setdefault(metric, {})[decoder] = None
    return {metric: list(decoders) for metric, decoders in found.items()}


def _failed(sample: Sample) -> bool:
    return any(reason for told in (sample.get("failed") or {}).values() for reason in told)


def _decoder(name: str, source: Any, samples: Sequence[Sample], decoder: str) -> Numbers:
    """Return the numbers of a decoder, the mean over its seeds."""
    seeds = range(len(samples[0]["answers"][decoder]))
    runs = [_numbers(name, source, samples, [sample["answers"][decoder][seed] for sample in samples]) for seed in seeds]
    alike = [[metric for metric in first if all(metric in run[i] for run in runs)] for i, first in enumerate(runs[0])]
    return [{metric: sum(run[i][metric] for run in runs) / len(runs) for metric in of} for i, of in enumerate(alike)]


def stock_results(source: Any, keys: Sequence[str], answers: Sequence[str]) -> dict[str, list[Any]]:
    """Return what a task makes of each answer, as lmms-eval's evaluator does: metric -> a result or None for each.

    Args:
        source: lmms-eval's task.
        keys: the documents, in order.
        answers: to each.
    """
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


def _numbers(name: str, source: Any, samples: Sequence[Sample], answers: Sequence[str]) -> Numbers:
    numbers: Numbers = [{} for _ in samples]
    pictures = [sample["picture"] for sample in samples]
    try:
        with quiet():
            for metric, values in stock_results(source, [sample["key"] for sample in samples], answers).items():
                has = [i for i, value in enumerate(values) if value is not None]
                aggregate = source.aggregation()[metric.partition(",")[0]]
                moved = spread(aggregate, [values[i] for i in has], [pictures[i] for i in has])
                for i, value in zip(has, moved, strict=True):
                    numbers[i][metric] = value
    except Exception as error:
        raise DataError(
            f"lmms-eval's own scoring of {name} fails on these answers ({type(error).__name__}: {error}). They are "
            "kept: the same command scores them again."
        ) from error
    for number, sample, answer in zip(numbers, samples, answers, strict=True):
        ours = {"words": float(len(answer.split()))}
        truth = str(sample["truth"]).strip().lower()
        if truth in ("yes", "no"):
            said = pope.read(answer)
            ours |= {"accuracy": said == truth, "yes_ratio": said == "yes", "unreadable": said is None}
        for metric, value in ours.items():
            number.setdefault(metric, value)  # the task's own stands, where it has one of that name
    return numbers


def spread(aggregate: Callable[..., Any], values: Sequence[Any], pictures: Sequence[str]) -> list[float]:
    """Return a number for each value: their mean is `aggregate(values)`, their spread over pictures that score's.

    Where the score is not defined (CHAIR_i of captions that name nothing) they are NaN.

    Args:
        aggregate: a task's own function of all results.
        values: the results.
        pictures: of each.

    Raises:
        DataError: the score is not a number, or takes so long that it can't be taken for each picture left out.
    """
    began = time.monotonic()
    whole = _score(aggregate, values)
    took = time.monotonic() - began
    if math.isnan(whole):
        return [math.nan] * len(values)
    plain = _as_numbers(values)
    for scale in (1.0, 100.0):
        if plain and math.isclose(scale * sum(plain) / len(plain), whole, rel_tol=1e-12, abs_tol=1e-12):
            return [scale * value for value in plain]
    of: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        of.setdefault(picture, []).append(place)
    if len(of) < 2:
        return [whole] * len(values)
    if took * len(of) > PATIENCE:
        raise DataError(f"a score takes {took:.1f} s, too long to find what each of {len(of)} pictures does to it")
    without = np.array([_without(aggregate, values, set(places), whole) for places in of.values()])
    influence = (len(of) - 1) * (without.mean() - without)
    each = len(values) / len(of)
    found = [whole] * len(values)
    for places, moved in zip(of.values(), influence.tolist(), strict=True):
        for place in places:
            found[place] = whole + each * moved / len(places)
    return found


def _without(aggregate: Callable[..., Any], values: Sequence[Any], places: set[int], whole: float) -> float:
    left = _score(aggregate, [value for place, value in enumerate(values) if place not in places])
    return whole if math.isnan(left) else left


def _score(aggregate: Callable[..., Any], values: Sequence[Any]) -> float:
    if "args" in inspect.signature(aggregate).parameters:
        raise DataError("its score needs the arguments of lmms-eval's command line")
    try:
        return float(aggregate(list(values)))
    except ZeroDivisionError:
        return math.nan
    except TypeError as error:
        raise DataError(f"a score is no number: {error}") from error


def _as_numbers(values: Sequence[Any]) -> list[float]:
    """Return the results as numbers, [] where they are none."""
    plain: list[Any] = [value.get("score") if isinstance(value, Mapping) else value for value in values]
    fit = all(isinstance(value, int | float | np.number) for value in plain)
    return [float(value) for value in plain] if fit else []
