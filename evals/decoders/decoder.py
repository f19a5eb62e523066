"""What a run compares: each way of answering, by name, with the controls that make its gain believable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from lvlm_guard import methods
from lvlm_guard.api import resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.controls import RandomMap
from lvlm_guard.evals.decoders.variants import Arm, arms_of, check_knobs, knobs_of, usual
from lvlm_guard.evals.report.figures import named
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import Matcher

PLAIN: dict[str, Any] = {"do_sample": False, "num_beams": 1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}

REFERENCE = "greedy"  # what every row is compared with
SAMPLE, MATCHED, APC, MATCHER = "sample", "sample-matched", "apc", "matcher"
PAPER = "paper-agla"  # the preset under which methods are sampled, as in the paper
APC_BETA = 0.5  # AGLA's, where no method of the run has a cut of its own


@dataclass(frozen=True)
class Decoder:
    """One way of answering.

    Args:
        name: as in result rows.
        about: what it is, in a few words, for tables.
        guard: seed -> the `guard=` of a call: False, or a method. None: the matcher answers without the
            model (yes/no questions only).
        options: further arguments of `generate()`.
        seeds: how many runs; their counts are averaged. 1 for what is not random.
        method: the registered name of its method, if it has one.
        knobs: the method's knobs, as plain data.
        control_of: the method whose gain it is a control of.
        point: the swept knobs of this decoder.
        adapters: PEFT adapters that act while it answers, one for each of its seeds; () for none.
        matcher: name of its matcher among those that the run compares; "" where none are.
        matchers: registered names or folders of its matcher, one for each of its seeds where there are several
            trainings; () for the model's own.
    """

    name: str
    about: str
    guard: Callable[[int], Any] | None
    options: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))
    seeds: int = 1
    method: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    control_of: str | None = None
    point: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    matcher: str = ""
    matchers: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether its answers are drawn."""
        return bool(self.options.get("do_sample"))

    def describe(self) -> dict[str, Any]:
        """Return the decoder as it stands in `run.json`."""
        return {
            "name": self.name,
            "about": self.about,
            "method": self.method,
            "knobs": dict(self.knobs),
            "options": self.options,
            "seeds": self.seeds,
            "sampled": self.sampled,
            "control_of": self.control_of,
            "adapters": list(self.adapters),
            "matcher": self.matcher or None,
            "matchers": list(self.matchers),
        }


def decoders_of(
    settings: Settings,
    matcher: Matcher | None,
    objects: Sequence[str] | None = None,
    loaded: Mapping[str, Matcher] | None = None,
) -> list[Decoder]:
    """Return the decoders of a run, plain ones first, each method beside its controls.

    Args:
        settings: names of methods, their knobs, the sweep, and whether controls are added.
        matcher: the matcher of the model, for the controls that take it; None where there is none.
        objects: what `vote` votes on; None: its own vocabulary.
        loaded: matchers that methods name, by registered name or folder; None before they are loaded.

    Raises:
        UnknownNameError: no such method.
        KnobError: a knob that no method has, or out of range.
    """
    wanted = list(dict.fromkeys(settings.methods))
    made: dict[str, Decoder] = {}

    def add(*decoders: Decoder) -> None:
        for decoder in decoders:
            made.setdefault(decoder.name, decoder)

    bases = list(dict.fromkeys(_base(name) for name in wanted))
    own = {name: _method(name, settings, objects) for name in bases if name not in _PLAIN_NAMES}
    check_knobs(settings, own)
    add(_greedy())
    for name, places in adapters_of(settings).items():
        if name in {*_PLAIN_NAMES, *methods.REGISTRY.names()}:
            raise KnobError(f"--adapter {name}={places[0]}: {name!r} is a decoder's name already; give another one.")
        add(_adapted(name, places))
    if settings.controls or SAMPLE in wanted:
        add(_sample(settings.seeds))
    for name, method in own.items():
        if (settings.controls or MATCHED in wanted) and (temperature := method.matched_temperature()) is not None:
            add(_matched(made, temperature, name, settings.seeds))
    if settings.controls or APC in wanted:
        add(_apc(own, settings))
    for name, method in own.items():
        if name == APC:
            continue
        arms = list(arms_of(name, method, settings, loaded or {}))
        for arm in arms:
            add(_decoder(arm))
            # what sampling does is no matter of the matcher: one arm shows it
            shown = arm is usual(arms) and _sharpens(method, settings)
            if not settings.sweep and (f"{name}-sample" in wanted or settings.preset == PAPER or shown):
                add(_sampled(arm, settings.seeds))
            real = arm.loaded
            if matcher is not None and "matcher" in knobs_of(method) and arm.first.matcher is None:
                real = (matcher,)
            asked = settings.controls and _has_map(method) and not settings.sweep
            if real and (f"{name}-random" in wanted or asked):
                add(_random(arm, real, settings.seeds))
            if real and settings.controls and _asks_claims(method):
                add(_matcher(arm))
    if MATCHER in wanted:
        add(_matcher(None))
    return list(made.values())


_PLAIN_NAMES = {REFERENCE, SAMPLE, MATCHED, MATCHER}
_SUFFIXES = ("-sample", "-random")


def _base(name: str) -> str:
    if name in _PLAIN_NAMES or name in methods.REGISTRY.names():
        return name
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def _method(name: str, settings: Settings, objects: Sequence[str] | None) -> Method:
    knobs = dict(settings.knobs.get(name, {}))
    fields = {f.name for f in dataclasses.fields(methods.REGISTRY.get(name))}
    if objects is not None and "objects" in fields:
        knobs.setdefault("objects", tuple(objects))
    return resolve(name, knobs)


def _sharpens(method: Method, settings: Settings) -> bool:
    return settings.controls and method.matched_temperature() is not None


def _has_map(method: Method) -> bool:
    return "matcher" in knobs_of(method) and bool(method.branches())


def _asks_claims(method: Method) -> bool:
    return "matcher" in knobs_of(method) and not method.branches()


def _greedy() -> Decoder:
    return Decoder(REFERENCE, "plain, greedy", lambda _: False)


def adapters_of(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the adapters of a run: name -> folders or hub ids, one for each seed."""
    found: dict[str, tuple[str, ...]] = {}
    for told in settings.adapters:
        left, equals, right = told.partition("=")
        name, place = (left, right) if equals else (PurePath(told).name, told)
        if not name or not place:
            raise KnobError(f"--adapter {told!r}: write NAME=FOLDER, or the folder or hub id alone.")
        found[name] = (*found.get(name, ()), place)
    return found


def _adapted(name: str, places: tuple[str, ...]) -> Decoder:
    trained = "" if len(places) == 1 else f", {len(places)} training seeds"
    return Decoder(
        name, f"plain, greedy, with an adapter{trained}", lambda _: False, seeds=len(places), adapters=places
    )


def _sample(seeds: int) -> Decoder:
    return Decoder(SAMPLE, "plain, sampled at temperature 1", lambda _: False, dict(SAMPLED), seeds)


def _matched(made: Mapping[str, Decoder], temperature: float, method: str, seeds: int) -> Decoder:
    options = SAMPLED | {"temperature": temperature}
    taken = made.get(MATCHED)
    name = MATCHED if taken is None or taken.options == options else f"{MATCHED}-{temperature:.2g}"
    about = f"plain, sampled at temperature {temperature:.2g}: as sharp as {method}"
    return Decoder(name, about, lambda _: False, options, seeds, control_of=method)


def _apc(own: Mapping[str, Method], settings: Settings) -> Decoder:
    betas = [float(method.beta) for method in own.values() if hasattr(method, "beta")]
    beta = betas[0] if betas else APC_BETA
    apc = own.get(APC) or resolve(APC, {"beta": beta})
    about = f"plausible tokens alone (beta {apc.knobs()['beta']:g}), sampled"
    return Decoder(APC, about, lambda _: apc, dict(SAMPLED), settings.seeds, APC, apc.knobs())


def _decoder(arm: Arm) -> Decoder:
    return _of_arm(arm, "", f"{arm.name()}, greedy", arm.guard, seeds=len(arm.methods), point=arm.point)


def _sampled(arm: Arm, seeds: int) -> Decoder:
    told = f"{arm.name()}, sampled at temperature 1"
    return _of_arm(arm, "-sample", told, arm.guard, options=dict(SAMPLED), seeds=arm.runs(seeds))


def _random(arm: Arm, real: Sequence[Matcher], seeds: int) -> Decoder:
    def guard(seed: int) -> Any:
        return dataclasses.replace(arm.guard(seed), matcher=RandomMap(real[seed % len(real)], seed))

    told = f"{arm.name()} with a random map that keeps as much"
    return _of_arm(arm, "-random", told, guard, seeds=arm.runs(seeds), control_of=named(arm.base, arm.matcher))


def _of_arm(arm: Arm, suffix: str, about: str, guard: Callable[[int], Any], **more: Any) -> Decoder:
    trained = f", {len(arm.methods)} training seeds" if len(arm.methods) > 1 else ""
    beside: dict[str, Any] = {"method": arm.base, "knobs": arm.knobs(), "matcher": arm.matcher, "matchers": arm.places}
    return Decoder(arm.name(suffix), about + trained, guard, **beside, **more)


def _matcher(arm: Arm | None) -> Decoder:
    about = "the matcher's own answer, no language model"
    if arm is None:
        return Decoder(MATCHER, about, None)
    return Decoder(
        named(MATCHER, arm.matcher),
        about,
        None,
        seeds=len(arm.methods),
        control_of=named(arm.base, arm.matcher),
        matcher=arm.matcher,
        matchers=arm.places,
    )
