"""The decoders of a run: plain decoding, the methods, and the controls without which no gain is believable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lvlm_guard import methods
from lvlm_guard.api import resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.controls import RandomMap
from lvlm_guard.evals.decoders.decoder import PAPER, REFERENCE, SAMPLED, Decoder
from lvlm_guard.evals.decoders.matchers import DEFAULT, refuse_unmatched
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import Matcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE, MATCHED, MATCHER, TILT, OLM = "sample", "sample-matched", "matcher", "tilt", "olm"
PROMPTS = {"prompt-yes": "Answer yes whenever possible.", "prompt-no": "Answer no whenever possible."}
"""The first is that of arXiv 2504.10020's code, the second our own."""

APC = "apc"
ALL = "all"  # every method that is no experiment

_NAMES = (REFERENCE, SAMPLE, MATCHED, MATCHER, TILT, OLM, *PROMPTS)


def decoders_of(
    settings: Settings,
    matcher: Matcher | None = None,
    objects: Sequence[str] | None = None,
    loaded: Mapping[str, Matcher] | None = None,
) -> list[Decoder]:
    """Return the decoders of a run, plain ones first, each method beside its controls.

    Args:
        settings: names of methods, their knobs, the sweep, and whether controls are added. Among the names may be
            those of single controls, and "all" for every method.
        matcher: the matcher of the model, for the controls that take it; None where there is none.
        objects: what `vote` votes on; None: its own vocabulary.
        loaded: matchers that methods name, by registered name or folder; None before they are loaded.

    Raises:
        UnknownNameError: no such method.
        KnobError: a knob that no method has, or out of range.
    """
    own = {name: _method(name, settings, objects) for name in methods_of(settings.methods)}
    _check_knobs(settings, own)
    apc = own.pop(APC, None)
    made = [Decoder(REFERENCE, "plain, greedy", _plainly, role="reference", baseline=None)]
    for name, places in adapters_of(settings).items():
        if name in {*_NAMES, *methods.REGISTRY.names()}:
            raise KnobError(f"--adapter {name}={places[0]}: {name!r} is a decoder's name already; give another one.")
        told = "plain, greedy, with an adapter" + _trained(places)
        made.append(Decoder(name, told, _plainly, seeds=len(places), role="adapter", adapters=places))
    made += _controls(settings, own.values(), apc)
    for name, method in own.items():
        variants = list(_variants(name, method, settings, loaded or {}))
        for decoder in variants:
            usual = next((one for one in variants if one.matcher == DEFAULT), variants[0])
            first = usual if settings.matchers and decoder is not usual else None
            made.append(decoder if first is None else replace(decoder, baseline=first.name))
            made += _beside(decoder, settings, matcher, shown=first is None)
    if MATCHER in settings.methods and not any(decoder.role == "matcher" for decoder in made):
        made.append(Decoder(MATCHER, _MATCHER, None, role="matcher"))
    return [d for i, d in enumerate(made) if d.name not in {other.name for other in made[:i]}]


_MATCHER = "the matcher's own answer, no language model"


def understood(decoders: Sequence[Decoder], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Decoder], list[str]]:
    """Return the decoders whose prompts a model can read, and sentences on those that it can't.

    A closed vocabulary reads an unknown word as a hole: what a model says after that is no control of anything.
    """
    unknown = tokenizer.unk_token_id
    lost = [
        d
        for d in decoders
        if d.prompt_suffix and unknown in tokenizer(d.prompt_suffix.lower(), add_special_tokens=False)["input_ids"]
    ]
    flags = [f'{d.name} is left out: the model\'s vocabulary lacks words of "{d.prompt_suffix}"' for d in lost]
    return [d for d in decoders if d not in lost], flags


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


def _plainly(_: int) -> bool:
    return False


def _always(method: Method) -> Callable[[int], Method]:
    return lambda _: method


def methods_of(wanted: Iterable[str]) -> list[str]:
    """Return the registered names of the methods that `Settings.methods` asks for; `resolve` raises on one unknown."""
    known = methods.REGISTRY.names()
    beside = {f"{name}{suffix}": name for name in known for suffix in ("-sample", "-random")}
    found: list[str] = []
    for name in wanted:
        if name == ALL:
            found += [n for n in known if n != APC and not getattr(methods.REGISTRY.get(n), "experimental", False)]
        elif name not in _NAMES:
            found.append(beside.get(name, name) if name not in known else name)
    return list(dict.fromkeys(found))


def _method(name: str, settings: Settings, objects: Sequence[str] | None) -> Method:
    knobs = dict(settings.knobs.get(name, {}))
    fields = {f.name for f in dataclasses.fields(methods.REGISTRY.get(name))}
    if objects is not None and "objects" in fields:
        knobs.setdefault("objects", tuple(objects))
    return resolve(name, knobs)


def _controls(settings: Settings, own: Iterable[Method], apc: Method | None) -> Iterator[Decoder]:
    """Yield what needs no method: plain sampling, cuts alone, other prompts, moved thresholds."""

    def wants(name: str) -> bool:
        return settings.controls or name in settings.methods

    own, seeds = list(own), settings.seeds
    if wants(SAMPLE):
        yield Decoder(SAMPLE, "plain, sampled at temperature 1", _plainly, dict(SAMPLED), seeds, role="plain")
    drawn: dict[str, Any] = {"role": "control", "baseline": SAMPLE}
    if wants(MATCHED):
        as_sharp: dict[float, list[str]] = {}
        for method in own:
            if (temperature := method.matched_temperature()) not in (None, 1.0):
                as_sharp.setdefault(temperature, []).append(method.name)
        for temperature, names in as_sharp.items():
            name = MATCHED if len(as_sharp) == 1 else f"{MATCHED}({temperature:.2g})"
            about = f"plain, sampled at temperature {temperature:.2g}: as sharp as {', '.join(names)}"
            yield Decoder(name, about, _plainly, SAMPLED | {"temperature": temperature}, seeds, **drawn)
    cutting = [*([apc] if apc else []), *(own if settings.controls else [])]
    for beta in dict.fromkeys(float(getattr(method, "beta", 0)) for method in cutting):
        if not beta:
            continue  # nothing is cut
        cut = resolve(APC, {"beta": beta})
        about = f"plausible tokens alone (beta {beta:g}), sampled"
        yield Decoder(f"{APC}({beta:g})", about, _always(cut), dict(SAMPLED), seeds, APC, cut.knobs(), **drawn)
    for name, suffix in PROMPTS.items():
        if wants(name):
            yield Decoder(name, f"plain, told: {suffix}", _plainly, role="control", prompt_suffix=suffix)
    if wants(TILT):
        yield Decoder(
            TILT, "greedy's scores, the threshold fitted on other pictures", None, role="control", derive="tilt"
        )
    if wants(OLM):
        about = "greedy, but yes where yes and no are close (arXiv 2504.10020)"
        yield Decoder(OLM, about, None, role="control", derive="olm")


def _variants(name: str, method: Any, settings: Settings, loaded: Mapping[str, Matcher]) -> Iterator[Decoder]:
    """Yield what a method is run as: once, with every matcher that a run compares, or at every point of a sweep."""
    swept = [knob for knob in settings.sweep if knob in _knobs_of(method)]
    if swept:
        for values in product(*(settings.sweep[knob] for knob in swept)):
            point = dict(zip(swept, values, strict=True))
            yield _guarded(name, [replace(method, **point)], loaded, point=point)
    elif settings.matchers and "matcher" in _knobs_of(method):
        for matcher, places in settings.matchers.items():
            yield _guarded(name, [replace(method, matcher=place) for place in places], loaded, matcher=matcher)
    else:
        yield _guarded(name, [method], loaded)


def _guarded(
    base: str,
    given: list[Any],
    loaded: Mapping[str, Matcher],
    point: Mapping[str, Any] | None = None,
    matcher: str = "",
) -> Decoder:
    """Return the greedy decoder of a method, given once for each training of its matcher."""
    places = tuple(m.matcher for m in given if isinstance(getattr(m, "matcher", None), str))
    runs = [replace(m, matcher=loaded.get(m.matcher, m.matcher)) for m in given] if places else given
    knobs = runs[0].knobs()
    if len(runs) > 1:
        knobs["matcher"] = [run.knobs()["matcher"] for run in runs]
    name = _named(base, "", point or {}, matcher)
    return Decoder(
        name,
        f"{name}, greedy{_trained(runs)}",
        lambda seed: runs[seed % len(runs)],
        seeds=len(runs),
        method=base,
        knobs=knobs,
        point=point or {},
        matcher=matcher,
        matchers=places,
    )


def _beside(decoder: Decoder, settings: Settings, matcher: Matcher | None, shown: bool) -> Iterator[Decoder]:
    """Yield what stands beside a method's greedy decoder: sampled, with a random map, and its matcher alone.

    Args:
        decoder: the greedy one.
        settings: of the run.
        matcher: of the model.
        shown: whether it is the one that stands for its method where several matchers are compared: what sampling
            does is no matter of the matcher.
    """
    assert decoder.guard is not None
    assert decoder.method is not None
    guard, method, base = decoder.guard, decoder.guard(0), decoder.method
    trainings = max(1, len(decoder.matchers))
    runs, trained = trainings if trainings > 1 else settings.seeds, _trained(decoder.matchers)
    sampled, random = (_named(base, suffix, decoder.point, decoder.matcher) for suffix in ("-sample", "-random"))
    asked = settings.controls and not settings.sweep
    drawn = asked and shown and method.matched_temperature() is not None
    if drawn or (not settings.sweep and settings.preset == PAPER) or sampled in settings.methods:
        about = f"{decoder.name}, sampled at temperature 1{trained}"
        yield replace(decoder, name=sampled, about=about, options=dict(SAMPLED), seeds=runs, baseline=SAMPLE)
    if "matcher" not in _knobs_of(method):
        return
    real: list[Any] = [matcher if guard(seed).matcher is None else guard(seed).matcher for seed in range(trainings)]
    if any(one is None or isinstance(one, str) for one in real):
        return  # not loaded yet

    def with_noise(seed: int) -> Any:
        return replace(guard(seed), matcher=RandomMap(real[seed % trainings], seed))

    if (asked and method.branches()) or random in settings.methods:
        about = f"{decoder.name} with a random map that keeps as much{trained}"
        control: dict[str, Any] = {"role": "control", "control_of": decoder.name, "baseline": REFERENCE}
        yield replace(decoder, name=random, about=about, guard=with_noise, seeds=runs, **control)
    if settings.controls and not method.branches():
        yield Decoder(
            _named(MATCHER, "", {}, decoder.matcher),
            _MATCHER + trained,
            None,
            seeds=trainings,
            role="matcher",
            control_of=decoder.name,
            matcher=decoder.matcher,
            matchers=decoder.matchers,
        )


def _named(base: str, suffix: str, point: Mapping[str, Any], matcher: str) -> str:
    told = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())
    return f"{base}{suffix}" + (f"[{told}]" if told else "") + (f", {matcher}" if matcher else "")


def _trained(trainings: Sequence[Any]) -> str:
    return f", {len(trainings)} training seeds" if len(trainings) > 1 else ""


def _knobs_of(method: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(method)}


def _check_knobs(settings: Settings, own: Mapping[str, Method]) -> None:
    """See that a run's methods can take its knobs, its sweep and its matchers."""
    for name in settings.knobs:
        if name not in own:
            raise KnobError(
                f"There are knobs for {name!r}, which is none of the methods of this run ({', '.join(own)}): add it to "
                "--methods, or leave the knobs out."
            )
    for knob in settings.sweep:
        if not any(knob in _knobs_of(method) for method in own.values()):
            known = sorted({n for method in own.values() for n in _knobs_of(method)})
            raise KnobError(f"No method of this run has a knob {knob!r} to sweep. They have: {', '.join(known)}.")
    refuse_unmatched(settings, [name for name, method in own.items() if "matcher" in _knobs_of(method)], list(own))
