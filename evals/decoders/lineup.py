"""The decoders of a run: plain decoding, the methods, and the controls without which no gain is believable."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from lvlm_guard import methods
from lvlm_guard.api import combined, parts_of, resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.decoder import PAPER, REFERENCE, SAMPLED, Decoder
from lvlm_guard.evals.decoders.matchers import DEFAULT, RandomMap
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import Matcher
from lvlm_guard.matching.attention import Attention

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

APC, MATCHED, MATCHER = "apc", "sample-matched", "matcher"
ALL = "all"  # every method that is no experiment, and no release with its defects
_PLAINLY, _BESIDE = (False,), ("sample", "random")
_ENDS = re.compile(f"-({'|'.join(_BESIDE)})$")

_GREEDY = Decoder(REFERENCE, "plain, greedy", _PLAINLY, role="reference", baseline=None)
_SAMPLE = Decoder("sample", "plain, sampled at temperature 1", _PLAINLY, SAMPLED, role="plain")
_MATCHER = Decoder(MATCHER, "the matcher's own answer, no language model", (), role="matcher")
_PROMPTS = {
    "prompt-yes": "Answer yes whenever possible.",  # of arXiv 2504.10020's code
    "prompt-no": "Answer no whenever possible.",  # our own
}
_CONTROLS = (
    *(Decoder(n, f"plain, told: {w}", _PLAINLY, role="control", prompt_suffix=w) for n, w in _PROMPTS.items()),
    Decoder("tilt", "greedy's scores, the threshold fitted on other pictures", (), role="control", derive="tilt"),
    Decoder("olm", "greedy, but yes where yes and no are close (arXiv 2504.10020)", (), role="control", derive="olm"),
)
_NAMES = (REFERENCE, _SAMPLE.name, MATCHED, MATCHER, *(control.name for control in _CONTROLS))


def decoders_of(
    settings: Settings,
    matcher: Matcher | None = None,
    objects: Sequence[str] | None = None,
    loaded: Mapping[str, Matcher] | None = None,
) -> list[Decoder]:
    """Return the decoders of a run, plain ones first, each method beside its controls.

    `settings.methods` may name single controls too, and "all"; `matcher` is the model's, for the controls that take it;
    `objects` what `vote` votes on (None: its own vocabulary); `loaded` the matchers that methods name, once they are.
    Raises `UnknownNameError` (no such method), `KnobError` (an unknown or impossible knob; matchers that no method
    takes).
    """

    def ready(part: str) -> Method:
        knobs = dict(settings.knobs.get(part, {}))
        method: Any = resolve(part, knobs)
        method.ready()
        if objects is not None and hasattr(method, "objects") and "objects" not in knobs:
            method = replace(method, objects=tuple(objects))
        made: Method = method
        return made

    own: dict[str, Any] = {name: combined(name, ready) for name in methods_of(settings.methods, settings.knobs)}
    _check(settings, own)
    made = [_GREEDY]
    for name, places in adapters_of(settings).items():
        if name in {*_NAMES, *methods.REGISTRY.names()}:
            raise KnobError(f"--adapter {name}={places[0]}: {name!r} is a decoder's name already; give another one.")
        told = "plain, greedy, with an adapter" + _trained(len(places))
        made.append(Decoder(name, told, _PLAINLY, seeds=len(places), role="adapter", adapters=places))
    made += _controls(settings, own)
    for name, method in own.items():
        for decoder in _variants(name, method, settings, loaded or {}) if name != APC else ():
            made += [decoder, *_beside(decoder, settings, matcher)]
    if MATCHER in settings.methods and not any(decoder.role == "matcher" for decoder in made):
        made.append(_MATCHER)
    found: dict[str, Decoder] = {}
    for decoder in made:
        found.setdefault(decoder.name, decoder)
    return list(found.values())


def understood(decoders: Sequence[Decoder], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Decoder], list[str]]:
    """Return the decoders whose prompts a model can read, and sentences on those that it can't. A closed vocabulary
    reads an unknown word as a hole: what a model says after that is no control of anything."""
    kept, flags = [], []
    for d in decoders:
        ids = tokenizer(d.prompt_suffix.lower(), add_special_tokens=False)["input_ids"]
        if d.prompt_suffix and tokenizer.unk_token_id in ids:
            flags.append(f'{d.name} is left out: the model\'s vocabulary lacks words of "{d.prompt_suffix}"')
        else:
            kept.append(d)
    return kept, flags


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


def methods_of(wanted: Iterable[str], knobs: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Return the registered names of the methods that `Settings.methods` asks for; `resolve` raises on one unknown.

    "all" leaves out experiments, releases with their defects, and methods whose statistics are not among the knobs.
    """
    known = methods.REGISTRY.names()
    found: list[str] = []
    for name in wanted:
        if name == ALL:
            kinds = {name: methods.REGISTRY.get(name) for name in known if name != APC}
            lacking = {name for name in kinds if kinds[name].needs_statistics and not (knobs or {}).get(name)}
            aside = {name for name, kind in kinds.items() if kind.experimental or kind.parity}
            found += [name for name in kinds if name not in lacking | aside]
        elif name not in _NAMES:
            found.append(name if name in known else _ENDS.sub("", name))
    return list(dict.fromkeys(found))


def left_out(settings: Settings) -> list[str]:
    """Return sentences on the methods that "all" does not stand for, since nobody gave their statistics."""
    if ALL not in settings.methods:
        return []
    there = methods_of(settings.methods, settings.knobs)
    lacking = [n for n in methods.REGISTRY.names() if n not in there and methods.REGISTRY.get(n).needs_statistics]
    return [
        f"{name} is left out: it needs statistics of the model. Gather them by `lvlm-guard calibrate {name}`, and give "
        f"--knob {name}.statistics=FILE"
        for name in lacking
    ]


def _check(settings: Settings, own: Mapping[str, Any]) -> None:
    there, matched = ", ".join(own), [m.assembling.name for m in own.values() if hasattr(m.assembling, "matcher")]
    known = sorted({f.name for method in own.values() for f in dataclasses.fields(method.assembling)})
    parts = [part for name in own for part in parts_of(name)]
    for name in (name for name in settings.knobs if name not in parts):
        raise KnobError(f"There are knobs for {name!r}, none of the methods of this run ({there}): add it.")
    for knob in (knob for knob in settings.sweep if knob not in known):
        raise KnobError(f"No method of this run has a knob {knob!r} to sweep. They have: {', '.join(known)}.")
    if not settings.matchers:
        return
    if not matched:
        told = f"--matcher {', '.join(settings.matchers)}: no method of this run ({there or 'none'}) has a matcher"
        raise KnobError(f"{told}. Add one that has to --methods, such as agla or vote.")
    for name in (name for name in matched if "matcher" in settings.knobs.get(name, {})):
        raise KnobError(f"{name} is given a matcher by --knob and by --matcher: leave one of them out.")
    if settings.sweep:
        knob = f"{matched[0]}.matcher={next(iter(settings.matchers.values()))[0]}"
        raise KnobError(f"A sweep chooses the settings of one matcher: give --knob {knob}, and leave --matcher out.")


def _controls(settings: Settings, own: Mapping[str, Method]) -> Iterator[Decoder]:
    def wants(name: str) -> bool:
        return settings.controls or name in settings.methods

    if wants(_SAMPLE.name):
        yield replace(_SAMPLE, seeds=settings.seeds)
    drawn = replace(_SAMPLE, seeds=settings.seeds, role="control", baseline=_SAMPLE.name)
    guards = {name: method for name, method in own.items() if name != APC}
    as_sharp: dict[float, list[str]] = {}
    for name, method in guards.items() if wants(MATCHED) else ():
        if (temperature := method.matched_temperature()) not in (None, 1.0):
            as_sharp.setdefault(temperature, []).append(name)
    for temperature, names in as_sharp.items():
        name = MATCHED if len(as_sharp) == 1 else f"{MATCHED}({temperature:.2g})"
        about = f"plain, sampled at temperature {temperature:.2g}: as sharp as {', '.join(names)}"
        yield replace(drawn, name=name, about=about, options=SAMPLED | {"temperature": temperature})
    cutting = [*([own[APC]] if APC in own else []), *(guards.values() if settings.controls else [])]
    for beta in dict.fromkeys(float(getattr(method.assembling, "beta", 0)) for method in cutting):
        if beta:  # else nothing is cut
            cut = resolve(APC, {"beta": beta})
            name, about = f"{APC}({beta:g})", f"plausible tokens alone (beta {beta:g}), sampled"
            yield replace(drawn, name=name, about=about, runs=(cut,), method=APC, knobs=cut.knobs())
    yield from (control for control in _CONTROLS if wants(control.name))


def _variants(name: str, method: Any, settings: Settings, loaded: Mapping[str, Matcher]) -> Iterator[Decoder]:
    """Yield what a method is run as, greedy: once, with every matcher of the run, or at every point of a sweep."""
    tuned = method.assembling
    swept = [knob for knob in settings.sweep if knob in {f.name for f in dataclasses.fields(tuned)}]
    points = [dict(zip(swept, values, strict=True)) for values in product(*(settings.sweep[knob] for knob in swept))]
    compared = (settings.matchers if hasattr(tuned, "matcher") else {}) or {"": ()}
    usual = DEFAULT if DEFAULT in compared else next(iter(compared))
    for point, (matcher, trainings) in product(points, compared.items()):
        named = point.get("matcher", getattr(tuned, "matcher", None))
        places = tuple(trainings) or ((named,) if isinstance(named, str) else ())
        runs = [method.tuned(**{**point, "matcher": loaded.get(place, place)}) for place in places]
        runs = runs or [method.tuned(**point)]
        knobs = runs[0].knobs()
        if len(runs) > 1:
            own = knobs if tuned is method else knobs[tuned.name]
            own["matcher"] = [run.assembling.knobs()["matcher"] for run in runs]
        called = _named(name, point, matcher)
        made = Decoder(called, f"{called}, greedy{_trained(len(runs))}", tuple(runs), seeds=len(runs), method=name)
        baseline = REFERENCE if matcher == usual else _named(name, point, usual)
        yield replace(made, knobs=knobs, baseline=baseline, point=point, matcher=matcher, matchers=places)


def _beside(decoder: Decoder, settings: Settings, matcher: Matcher | None) -> Iterator[Decoder]:
    """Yield what stands beside a method's greedy decoder: sampled, with a random map, and its matcher alone."""
    runs = decoder.runs
    method, trained = runs[0], _trained(len(runs))
    sampled, random = (_named(f"{decoder.method}-{end}", decoder.point, decoder.matcher) for end in _BESIDE)
    seeds = len(runs) if len(runs) > 1 else settings.seeds
    asked = settings.controls and not settings.sweep
    # of several matchers the usual one alone: what sampling does is no matter of the matcher
    drawn = asked and decoder.baseline == REFERENCE and method.sampled and method.matched_temperature() is not None
    if drawn or (not settings.sweep and settings.preset == PAPER) or sampled in settings.methods:
        about = f"{decoder.name}, sampled at temperature 1{trained}"
        yield replace(decoder, name=sampled, about=about, options=SAMPLED, seeds=seeds, baseline=_SAMPLE.name)
    asks = [run.assembling.matcher for run in runs if hasattr(run.assembling, "matcher")]
    real: list[Any] = [matcher if asked is None else asked for asked in asks]
    if not real or any(one is None or isinstance(one, str | Attention) for one in real):
        return  # it has none, it is not loaded yet, or it has no maps of its own to be shuffled
    told: dict[str, Any] = {"seeds": seeds, "role": "control", "control_of": decoder.name, "baseline": REFERENCE}
    if (asked and method.branches()) or random in settings.methods:
        about = f"{decoder.name} with a random map that keeps as much{trained}"
        noise = [RandomMap(real[seed % len(real)], seed) for seed in range(seeds)]
        maps = tuple(decoder.guard(one.seed).tuned(matcher=one) for one in noise)
        yield replace(decoder, name=random, about=about, runs=maps, **told)
    if settings.controls and not method.branches():
        told |= {"seeds": len(runs), "role": "matcher", "matcher": decoder.matcher, "matchers": decoder.matchers}
        yield replace(_MATCHER, name=_named(MATCHER, {}, decoder.matcher), about=_MATCHER.about + trained, **told)


def _named(base: str, point: Mapping[str, Any], matcher: str) -> str:
    told = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())
    return base + (f"[{told}]" if told else "") + (f", {matcher}" if matcher else "")


def _trained(trainings: int) -> str:
    return f", {trainings} training seeds" if trainings > 1 else ""
