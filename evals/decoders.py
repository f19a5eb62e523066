"""What a run compares: each way of answering, by name, with the controls that make its gain believable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import PurePath
from typing import Any

from lvlm_guard import methods
from lvlm_guard.api import resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.controls import RandomMap
from lvlm_guard.evals.settings import Settings
from lvlm_guard.matching import Matcher, load_matcher

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
        }


def decoders_of(settings: Settings, matcher: Matcher | None, objects: Sequence[str] | None = None) -> list[Decoder]:
    """Return the decoders of a run, plain ones first, each method beside its controls.

    Args:
        settings: names of methods, their knobs, the sweep, and whether controls are added.
        matcher: the matcher of the model, for the controls that take it; None where there is none.
        objects: what `vote` votes on; None: its own vocabulary.

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
    _check_knobs(settings, own)
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
        swept = bool(settings.sweep)
        add(*(_sweep(name, method, settings) if swept else [_decoder(name, method, settings.preset == PAPER)]))
        if not swept and (f"{name}-sample" in wanted or settings.preset == PAPER or _sharpens(method, settings)):
            add(_sampled(name, method, settings.seeds))
        random = f"{name}-random"
        if matcher is not None and (random in wanted or (settings.controls and _has_map(method) and not swept)):
            add(_random(name, method, matcher, settings.seeds))
        if matcher is not None and settings.controls and _asks_claims(method):
            add(_matcher(name))
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


def _check_knobs(settings: Settings, own: Mapping[str, Method]) -> None:
    for name in settings.knobs:
        if name not in own:
            raise KnobError(
                f"There are knobs for {name!r}, which is none of the methods of this run ({', '.join(own)}): add it to "
                "--methods, or leave the knobs out."
            )
    for knob in settings.sweep:
        if not any(knob in _names(method) for method in own.values()):
            known = sorted({n for method in own.values() for n in _names(method)})
            raise KnobError(f"No method of this run has a knob {knob!r} to sweep. They have: {', '.join(known)}.")


def _names(method: Method) -> set[str]:
    return {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]  # every method is a dataclass


def _sharpens(method: Method, settings: Settings) -> bool:
    return settings.controls and method.matched_temperature() is not None


def _has_map(method: Method) -> bool:
    return "matcher" in _names(method) and bool(method.branches())


def _asks_claims(method: Method) -> bool:
    return "matcher" in _names(method) and not method.branches()


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


def _decoder(name: str, method: Method, sampled_elsewhere: bool = False) -> Decoder:
    return Decoder(name, f"{name}, greedy", lambda _: method, method=name, knobs=method.knobs())


def _sampled(name: str, method: Method, seeds: int) -> Decoder:
    about = f"{name}, sampled at temperature 1"
    return Decoder(f"{name}-sample", about, lambda _: method, dict(SAMPLED), seeds, name, method.knobs())


def _random(name: str, method: Any, matcher: Matcher, seeds: int) -> Decoder:
    real = matcher if method.matcher is None else load_matcher(method.matcher)

    def guard(seed: int) -> Any:
        return dataclasses.replace(method, matcher=RandomMap(real, seed))

    about = f"{name} with a random map that keeps as much"
    return Decoder(f"{name}-random", about, guard, seeds=seeds, method=name, knobs=method.knobs(), control_of=name)


def _matcher(control_of: str | None) -> Decoder:
    return Decoder(MATCHER, "the matcher's own answer, no language model", None, control_of=control_of)


def _sweep(name: str, method: Any, settings: Settings) -> Iterator[Decoder]:
    knobs = [knob for knob in settings.sweep if knob in _names(method)]
    for values in product(*(settings.sweep[knob] for knob in knobs)):
        point = dict(zip(knobs, values, strict=True))
        chosen = dataclasses.replace(method, **point)
        told = ",".join(
            f"{knob}={value:g}" if isinstance(value, float) else f"{knob}={value}" for knob, value in point.items()
        )
        full = f"{name}[{told}]" if told else name
        yield Decoder(
            full, f"{name} with {told}, greedy", _always(chosen), method=name, knobs=chosen.knobs(), point=point
        )


def _always(method: Method) -> Callable[[int], Method]:
    return lambda _: method


def compared(decoders: Sequence[Decoder]) -> list[tuple[str, str, str]]:
    """Return pairs to compare beside the reference, and what each difference tells."""
    names = {decoder.name for decoder in decoders}
    matched = {d.control_of: d.name for d in decoders if d.name.startswith(MATCHED)}
    own = [d for d in decoders if d.method == d.name and d.name != APC]
    pairs = []
    for method in (d.name for d in own):
        pairs += [
            (method, f"{method}-random", "what the map adds to any second view blacked as much"),
            (f"{method}-sample", SAMPLE, "both sampled at temperature 1, as in the papers"),
            (f"{method}-sample", APC, f"what {method} adds to its plausibility cut, both sampled"),
            (f"{method}-sample", matched.get(method, ""), "what it adds to being as sharp as a lower temperature"),
        ]
    pairs += [
        (d.control_of, MATCHER, "what the language model adds to the matcher's own answer")
        for d in decoders
        if d.name == MATCHER and d.control_of
    ]
    pairs += [
        (d.name, method.name, "what the adapter, asked plainly, lacks of the guard")
        for d in decoders
        if d.adapters
        for method in own
    ]
    pairs += [(b.name, a.name, "both greedy") for i, a in enumerate(own) for b in own[i + 1 :]]
    return [(ours, theirs, tells) for ours, theirs, tells in pairs if ours in names and theirs in names]
