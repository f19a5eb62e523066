"""Matchers that a run compares: found where they are said to be before any model is loaded, then loaded beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.errors import KnobError, WeightsError
from lvlm_guard.evals.infer.identity import weights_digest
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import REGISTRY, Matcher, load_matcher
from lvlm_guard.matching.loading import held_in

DEFAULT = "blip-itm"  # of a method that names no matcher


def check_matchers(matchers: Mapping[str, Iterable[str]]) -> None:
    """See that there is a matcher wherever one is named, and none twice.

    Args:
        matchers: as in `Settings`.

    Raises:
        UnknownNameError: no matcher has this name.
        WeightsError: a folder is not there or holds no matcher.
        KnobError: a folder holds another matcher than its name says, or two hold the same weights.
    """
    found = [(name, place, _kind(name, place)) for name, places in matchers.items() for place in places]
    for name, place, kind in found:
        other = next((other for named, _, other in found if named == name and other != kind), None)
        if name in REGISTRY.names() and kind != name:
            other = name
        if other is not None:
            raise KnobError(
                f"--matcher {name}={place}: {place} is a {kind!r} matcher, no {other!r}. Several of one name are "
                f"trainings of one matcher; give this one another name, such as {kind}={place}."
            )
    _refuse_twice((f"{name}={place}", _identity(place)) for name, place, _ in found)


def refuse_unmatched(settings: Settings, matched: Sequence[str], methods: Sequence[str]) -> None:
    """See that the matchers of a run have methods that take them, and nothing else decides these.

    Args:
        settings: of the run.
        matched: its methods that have a matcher.
        methods: all of its methods.

    Raises:
        KnobError: they don't.
    """
    if not settings.matchers:
        return
    if not matched:
        raise KnobError(
            f"--matcher {', '.join(settings.matchers)}: no method of this run ({', '.join(methods) or 'none'}) has a "
            "matcher. Add one that has to --methods, such as agla or vote, or leave the matchers out."
        )
    told = [name for name in matched if "matcher" in settings.knobs.get(name, {})]
    if told:
        raise KnobError(f"{told[0]} is given a matcher by --knob and by --matcher: leave one of them out.")
    if settings.sweep:
        raise KnobError(
            "A sweep chooses the settings of one matcher: give it by --knob, such as "
            f"{matched[0]}.matcher={next(iter(settings.matchers.values()))[0]}, and leave --matcher out."
        )


def load_matchers(places: Iterable[str], matchers: Mapping[str, Iterable[str]], model: Any) -> dict[str, Matcher]:
    """Return the matchers at some places, each loaded once.

    Args:
        places: registered names and folders, those of `matchers` among them.
        matchers: as in `Settings`.
        model: that is guarded.

    Raises:
        WeightsError, UnsupportedModelError: one can't be had.
        KnobError: two of `matchers` have the same weights.
    """
    loaded = {place: load_matcher(place, model=model) for place in dict.fromkeys(places)}
    told = [(name, place) for name, of_name in matchers.items() for place in of_name if place in loaded]
    _refuse_twice((f"{name}={place}", loaded[place].version) for name, place in told)
    return loaded


def weights_beside(matchers: Mapping[str, Iterable[str]]) -> Iterator[Path]:
    """Return the folders that hold the weights of a run's matchers."""
    yield from (Path(place) for places in matchers.values() for place in places if Path(place).is_dir())


def _kind(name: str, place: str) -> str:
    if place in REGISTRY.names():
        return place
    kind = held_in(place)
    if kind is not None:
        return kind
    if Path(place).is_dir():
        raise WeightsError(
            f"--matcher {name}={place}: the folder holds no matcher. `lvlm-guard train dual-prompt` and `lvlm-guard "
            "train ranker` write one (guard_dual_prompt.json or guard_ranker.json says which), one in each seed-N; a "
            "CLIP or a BLIP has a config.json that says so."
        )
    if "/" not in place and name == place:
        REGISTRY.where(place)  # says which names there are
    raise WeightsError(
        f"--matcher {name}={place}: there is no folder {place!r}. Give a registered name "
        f"({', '.join(REGISTRY.names())}) or the folder of a matcher; one from the hub has to be fetched first."
    )


def _identity(place: str) -> str:
    folder = Path(place)
    return (weights_digest([folder]) or str(folder.resolve())) if folder.is_dir() else place


def _refuse_twice(named: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for told, identity in named:
        if identity in seen:
            raise KnobError(
                f"--matcher {told} has the weights of {seen[identity]}: two trainings that are one make an interval "
                "narrower than it is. Leave one out."
            )
        seen[identity] = told
