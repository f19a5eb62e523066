"""Whether two saved runs can be paired question by question, and which of their decoders stand for each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.saved import Run

_ASKED = ("picture", "prompt", "truth", "rows")  # of an item; its key pairs it
_PROTOCOL = ("kind", "split", "max_new_tokens", "until", "vocabulary", "n", "pictures")

Pair = tuple[str, str]
"""A decoder of the first run, and the one of the second that it is compared with."""


def common_tasks(a: Run, b: Run) -> list[dict[str, Any]]:
    """Return the tasks that both runs asked, as the first describes them.

    Raises:
        DataError: there is none, or one of the same name asked something else; the message lists what.
    """
    ours, theirs = ({task["name"]: task for task in run.asked["tasks"]} for run in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        raise DataError(
            f"The runs have no task in common: {a.folder} has {', '.join(ours) or 'none'}, {b.folder} has "
            f"{', '.join(theirs) or 'none'}."
        )
    problems = [f"{name} ({why})" for name in common if (why := _unlike(a, b, ours[name], theirs[name]))]
    if problems:
        raise DataError(
            f"{a.folder} and {b.folder} did not ask the same, so their answers can't be paired: {'; '.join(problems)}. "
            "Run one of them again with the other's tasks, limit, split and preset."
        )
    return [ours[name] for name in common]


def _unlike(a: Run, b: Run, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Say how a task of two runs differs; "" where it does not."""
    found = [
        f"{name} is {_short(ours.get(name))} and {_short(theirs.get(name))}"
        for name in _PROTOCOL
        if ours.get(name) != theirs.get(name)
    ]
    left, right = a.items[ours["name"]], b.items[theirs["name"]]
    for mine, other, folder in ((left, right, a.folder), (right, left, b.folder)):
        if only := mine.keys() - other.keys():
            found.append(f"{len(only)} items are only in {folder}")
    for name in _ASKED:
        keys = [key for key in left if key in right and left[key].get(name) != right[key].get(name)]
        if keys:
            before, after = (_short(side[keys[0]].get(name)) for side in (left, right))
            found.append(f"{name} differs in {len(keys)} items, first in {keys[0]!r}: {before} and {after}")
    if not found and ours.get("digest") != theirs.get("digest"):
        found.append(
            f"digest is {ours.get('digest')!r} and {theirs.get('digest')!r}; `lvlm-guard eval check` tells which is "
            "wrong"
        )
    return ", ".join(found)


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


def only_in_one(a: Run, b: Run, what: str, common: set[str]) -> Iterator[str]:
    """Say which tasks or decoders (`what`) only one of the runs has."""
    for run in (a, b):
        names = [one["name"] for one in run.asked[what] if one["name"] not in common and not one.get("derive")]
        if names:
            yield f"Only {run.folder} has the {what} {', '.join(names)}."


def pairs_of(a: Run, b: Run, decoder_a: str | None, decoder_b: str | None) -> list[Pair]:
    """Return which decoders to compare: those named, else all that both runs asked.

    Raises:
        DataError: there is no such decoder, or none in common, or two can't be compared.
    """
    if decoder_a is None and decoder_b is None:
        ours, theirs = ([d["name"] for d in run.asked["decoders"] if not d.get("derive")] for run in (a, b))
        pairs = [(name, name) for name in ours if name in theirs]
        if not pairs:
            raise DataError(
                f"The runs have no decoder in common: {a.folder} has {', '.join(ours)}, {b.folder} has "
                f"{', '.join(theirs)}. Name one of each (decoder_a, decoder_b)."
            )
    else:
        pairs = [(decoder_a or decoder_b or "", decoder_b or decoder_a or "")]
    for pair in pairs:
        _check_alike(a, b, *pair)
    return pairs


def _check_alike(a: Run, b: Run, ours: str, theirs: str) -> None:
    """Raise where a difference of two decoders would be that of something else than the decoders or the runs."""
    left, right = (dict(run.decoder(name).get("options") or {}) for run, name in ((a, ours), (b, theirs)))
    if ours != theirs:  # two ways of decoding: then nothing else may differ
        for run, told in ((a, left), (b, right)):
            settings = run.asked["settings"]
            told |= {"dtype": settings.get("dtype"), "weights": run.asked.get("weights")}
            # a server may give the guarded model a name of its own
            told |= {} if settings.get("server") else {"model": settings.get("model")}
    differing = [
        f"{name} is {left.get(name)!r} and {right.get(name)!r}"
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]
    if differing:
        raise DataError(
            f"{ours} of {a.folder} and {theirs} of {b.folder} answered under other settings ({', '.join(differing)}), "
            "so that would be what is compared. Pair decoders that decode alike, on one model; one decoder may be "
            "compared across two models."
        )
