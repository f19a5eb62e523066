"""What a method is run as: once, with every matcher that a run compares, or at every point of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol, TypeVar

from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.matchers import DEFAULT
from lvlm_guard.evals.report.figures import named
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import Matcher


@dataclass(frozen=True)
class Arm:
    """One way in which a method is run.

    Args:
        base: the method's registered name.
        methods: the method, once for each training of its matcher.
        told: its swept knobs as they stand in names, "[alpha=1]".
        matcher: name of that matcher in the run; "" where matchers are not compared.
        places: registered name or folder of the matcher of each; () for the model's own.
        loaded: the matchers themselves, once they are loaded.
        point: its swept knobs.
    """

    base: str
    methods: tuple[Any, ...]
    told: str = ""
    matcher: str = ""
    places: tuple[str, ...] = ()
    loaded: tuple[Matcher, ...] = ()
    point: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Any:
        """The method, with its matcher's first training."""
        return self.methods[0]

    def name(self, suffix: str = "") -> str:
        """Return the name of its decoder, or of one beside it such as "-random"."""
        return named(f"{self.base}{suffix}{self.told}", self.matcher)

    def guard(self, seed: int) -> Any:
        """Return the method of a run: its matcher's training of that number, where there are several."""
        return self.methods[seed % len(self.methods)]

    def runs(self, seeds: int) -> int:
        """Return how often what is random is run: once a training, or for each seed."""
        return len(self.methods) if len(self.methods) > 1 else seeds

    def knobs(self) -> dict[str, Any]:
        """Return the method's knobs as plain data; "matcher" lists those of several trainings."""
        told: dict[str, Any] = self.first.knobs()
        if len(self.methods) > 1:
            told["matcher"] = [method.knobs()["matcher"] for method in self.methods]
        return told


class _Matched(Protocol):
    @property
    def matcher(self) -> str: ...


_M = TypeVar("_M", bound=_Matched)


def usual(those: Sequence[_M]) -> _M:
    """Return the one with the matcher that others are compared with: the usual one, or else the first."""
    return next((one for one in those if one.matcher == DEFAULT), those[0])


def arms_of(base: str, method: Method, settings: Settings, loaded: Mapping[str, Matcher]) -> Iterator[Arm]:
    """Yield what a method is run as.

    Args:
        base: its registered name.
        method: with the run's knobs.
        settings: of the run.
        loaded: place -> matcher; empty before they are loaded.
    """
    own = knobs_of(method)
    swept = [knob for knob in settings.sweep if knob in own]
    if swept:
        for values in product(*(settings.sweep[knob] for knob in swept)):
            point = dict(zip(swept, values, strict=True))
            told = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())
            yield _arm(base, dataclasses.replace(method, **point), f"[{told}]", loaded, point)  # type: ignore[type-var]
    elif settings.matchers and "matcher" in own:
        for name, places in settings.matchers.items():
            given: Any = method
            methods = tuple(dataclasses.replace(given, matcher=loaded.get(place, place)) for place in places)
            there = tuple(loaded[place] for place in places if place in loaded)
            yield Arm(base, methods, "", name, tuple(places), there)
    else:
        yield _arm(base, method, "", loaded, {})


def _arm(base: str, method: Any, told: str, loaded: Mapping[str, Matcher], point: Mapping[str, Any]) -> Arm:
    place = getattr(method, "matcher", None)
    if not isinstance(place, str):
        return Arm(base, (method,), told, point=point)
    there = loaded.get(place)
    if there is None:
        return Arm(base, (method,), told, places=(place,), point=point)
    return Arm(base, (dataclasses.replace(method, matcher=there),), told, "", (place,), (there,), point)


def knobs_of(method: Method) -> set[str]:
    """Return the names of a method's knobs."""
    return {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]  # every method is a dataclass


def check_knobs(settings: Settings, own: Mapping[str, Method]) -> None:
    """See that a run's methods can take its knobs, its sweep and its matchers.

    Args:
        settings: of the run.
        own: its methods by name.

    Raises:
        KnobError: one can't.
    """
    for name in settings.knobs:
        if name not in own:
            raise KnobError(
                f"There are knobs for {name!r}, which is none of the methods of this run ({', '.join(own)}): add it to "
                "--methods, or leave the knobs out."
            )
    for knob in settings.sweep:
        if not any(knob in knobs_of(method) for method in own.values()):
            known = sorted({n for method in own.values() for n in knobs_of(method)})
            raise KnobError(f"No method of this run has a knob {knob!r} to sweep. They have: {', '.join(known)}.")
    if settings.matchers:
        _check_matched(settings, own)


def _check_matched(settings: Settings, own: Mapping[str, Method]) -> None:
    matched = [name for name, method in own.items() if "matcher" in knobs_of(method)]
    if not matched:
        raise KnobError(
            f"--matcher {', '.join(settings.matchers)}: no method of this run ({', '.join(own) or 'none'}) has a "
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
