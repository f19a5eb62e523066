"""Whether two saved runs can be paired question by question, and which of their decoders stand for each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.saved import Run
from lvlm_guard.evals.stats.score import VERDICTS

_ASKED = ("picture", "prompt", "truth", "rows")  # of an item; its key pairs it
_PROTOCOL = ("kind", "split", "max_new_tokens", "until", "vocabulary", "n", "pictures")
_OWN = {"tasks", "methods", "knobs", "questions", "images", "annotations", "include"}  # told elsewhere, or mere paths
_TOLD = ("version", "code", "weights", "where")

Pair = tuple[str, str]
"""A decoder of the first run, and the one of the second that it is compared with."""


def common_tasks(a: Run, b: Run) -> list[dict[str, Any]]:
    """Return the tasks that both asked, as they were scored; raises `DataError` where there is none, or what differs
    in one of the same name.
    """
    ours, theirs = ({task["name"]: task for task in run.asked["tasks"]} for run in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        told = [f"{run.folder} has {', '.join(own) or 'none'}" for run, own in ((a, ours), (b, theirs))]
        raise DataError(f"The runs have no task in common: {told[0]}, {told[1]}.")
    problems = [f"{name} ({why})" for name in common if (why := ", ".join(_unlike(a, b, ours[name], theirs[name])))]
    if problems:
        why = f"did not ask the same, so their answers can't be paired: {'; '.join(problems)}"
        raise DataError(f"{a.folder} and {b.folder} {why}. Run one again with the other's tasks and settings.")
    return [ours[name] | {"about": _about(ours[name], a, b)} for name in common]


def _about(task: Mapping[str, Any], a: Run, b: Run) -> dict[str, Any]:
    """Return what scoring knew of a task, in either run: CHAIR's dialects, and the verdicts in their folders."""
    about = dict(task.get("about") or {})
    for run in (a, b):
        told = next((one.get("about") or {} for one in run.results.tasks if one["name"] == task["name"]), {})
        found = {"dialects": told.get("dialects", ())}
        found["verdicts"] = [str(path) for path in sorted((run.folder / VERDICTS).glob("*.json"))]
        for name in found.keys() & told.keys():
            about[name] = list(dict.fromkeys([*about.get(name, ()), *found[name]]))
    return about


def _unlike(a: Run, b: Run, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = list(apart("", *({name: task.get(name) for name in _PROTOCOL} for task in (ours, theirs))))
    left, right = a.items[ours["name"]], b.items[theirs["name"]]
    for mine, other, folder in ((left, right, a.folder), (right, left, b.folder)):
        if only := mine.keys() - other.keys():
            found.append(f"{len(only)} items are only in {folder}")
    for name in _ASKED:
        keys = [key for key in left if key in right and left[key].get(name) != right[key].get(name)]
        if keys:
            before, after = (repr(side[keys[0]].get(name))[:60] for side in (left, right))
            found.append(f"{name} differs in {len(keys)} items, first in {keys[0]!r}: {before} and {after}")
    if not found and ours.get("digest") != theirs.get("digest"):
        found.append(f"{next(apart('', ours, theirs))}; `lvlm-guard eval check` tells which is wrong")
    return found


def apart(prefix: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """Say which values of two mappings differ."""
    for name in {**left, **right}:
        if left.get(name) != right.get(name):
            yield f"{prefix}{name} is {left.get(name)!r} and {right.get(name)!r}"


def pairs_of(a: Run, b: Run, decoder_a: str | None, decoder_b: str | None) -> list[Pair]:
    """Return which decoders to compare: those named, else all that both asked; raises `DataError` for what can't be."""
    pairs = [(decoder_a or decoder_b or "", decoder_b or decoder_a or "")]
    if decoder_a is None and decoder_b is None:
        ours, theirs = ([d["name"] for d in run.asked["decoders"] if not d.get("derive")] for run in (a, b))
        pairs = [(name, name) for name in ours if name in theirs]
        if not pairs:
            has = f"{a.folder} has {', '.join(ours)}, {b.folder} has {', '.join(theirs)}"
            raise DataError(f"The runs have no decoder in common: {has}. Name one of each (decoder_a, decoder_b).")
    for mine, other in pairs:
        alone = mine != other  # two ways of decoding: then nothing else may differ
        if differing := ", ".join(apart("", _decided_by(a, mine, alone), _decided_by(b, other, alone))):
            told = f"answered under other settings ({differing}), so that would be what is compared"
            raise DataError(f"{mine} of {a.folder} and {other} of {b.folder} {told}. Pair what decodes alike.")
    return pairs


def _decided_by(run: Run, decoder: str, alone: bool) -> dict[str, Any]:
    """Return what a decoder's answers depend on beside what it is."""
    settings, told = run.asked["settings"], dict(run.decoder(decoder).get("options") or {})
    if alone:
        told |= {"dtype": settings.get("dtype"), "weights": run.asked.get("weights")}
        # a server may give the guarded model a name of its own
        told |= {} if settings.get("server") else {"model": settings.get("model")}
    return told


def only_in_one(a: Run, b: Run, what: str, common: set[str]) -> Iterator[str]:
    """Say which tasks or decoders (`what`) only one of the runs has."""
    for run in (a, b):
        names = [one["name"] for one in run.asked[what] if one["name"] not in common and not one.get("derive")]
        if names:
            yield f"Only {run.folder} has the {what} {', '.join(names)}."


def differences(a: Run, b: Run, pairs: list[Pair]) -> Iterator[str]:
    """Say what differs between two runs beside their answers."""
    for x, y in pairs:
        left, right = a.decoder(x), b.decoder(y)
        if x == y:
            yield from apart(f"{x}: ", left.get("knobs") or {}, right.get("knobs") or {})
        if left["seeds"] != right["seeds"]:
            yield f"{x} ran {left['seeds']} times and {y} {right['seeds']} times; means are compared"
    settings = [{k: v for k, v in run.asked["settings"].items() if k not in _OWN} for run in (a, b)]
    yield from apart("setting ", *settings)
    yield from apart("", *({k: run.asked.get(k) for k in _TOLD} for run in (a, b)))
    for name in ("packages", "environment"):
        yield from apart("", *(run.asked.get(name) or {} for run in (a, b)))
