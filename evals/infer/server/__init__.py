"""The same tasks against an OpenAI-compatible endpoint: plain and guarded model names, no model in this process.

    ask(Settings(model="llava", server="http://127.0.0.1:8000/v1", methods=("agla", "vote")), "runs/served")

`NAME` answers plainly, `NAME-agla` and the like are guarded; `lvlm_guard.proof` says how an answer proves it. Before a
run, one small picture is asked about for every decoder; in a run every single answer is checked (`asker`). Knobs are
sent as vLLM's `vllm_xargs` ("agla_alpha": 1.5) and have to come back in the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lvlm_guard import methods
from lvlm_guard.endpoint import Endpoint, guard_fields
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.lineup import APC, MATCHER, decoders_of, methods_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.server.asker import Line, ServerAsker
from lvlm_guard.evals.spec.settings import Settings

Knobs = Mapping[str, Mapping[str, Any]]  # method -> with which knobs its guard runs at the server if none are sent


def server_run(
    settings: Settings, endpoint: Endpoint | None = None, concurrency: int = 1
) -> tuple[list[Decoder], ServerAsker, list[str]]:
    """Return the decoders that a server can be asked for, who asks it, and sentences on what this leaves out.

    `settings.server` is the address unless an `endpoint` with other time-outs is given, `settings.model` the plain
    model's name there. Raises `DataError`, `KnobError`, `UnknownNameError` (what this server can't be asked for),
    `ServerError` (it can't be reached, or refuses the key), `RunError` (it does not prove that a guard runs).
    """
    decoders_of(settings, None)  # names and knobs before the network
    _refuse(settings)
    endpoint = endpoint or Endpoint(settings.server)
    plain = endpoint.require(settings.model, "which --model names")
    guards = methods_of(settings.methods)
    for name in guards:
        endpoint.require(f"{plain}-{name}", f"{plain!r} guarded by {name}: leave {name} out of --methods, or serve it")
    if settings.controls and APC not in guards and f"{plain}-{APC}" in endpoint.served:
        guards.append(APC)
    asker = ServerAsker(endpoint, concurrency)
    asker.lines = {name: _line(endpoint, plain, Decoder(name, name, (), method=name), {}) for name in guards}
    for name in guards:
        asker.probe(name)
    known, asker.proofs = {name: proof.knobs for name, proof in asker.proofs.items()}, {}
    decoders = [d for d in decoders_of(_with_knobs(settings, known), None) if d.method is None or d.method in known]
    asked = [d for d in decoders if d.derive is None]
    asker.lines = {d.name: _line(endpoint, plain, d, _sent(d, settings, known)) for d in asked}
    replies = [asker.probe(d.name) for d in asked]
    proved = [d for d in decoders if asker.tells or d.derive is None]
    for at, d in enumerate(proved):
        if d.method is not None:
            about = f"{d.about}, asked as {asker.lines[d.name].model}"
            proved[at] = replace(d, knobs=dict(asker.proofs[d.name].knobs), about=about)
    return proved, asker, _flags(asker, settings, proved, replies)


def _refuse(settings: Settings) -> None:
    for own in (name for name in ("device", "dtype", "execution") if getattr(settings, name) != "auto"):
        raise DataError(f"{own} is the server's own: leave out --{own}, or --server.")
    if settings.adapters:
        told = "A server loads its adapters itself: serve the model with --lora-modules NAME=DIR and give that name as"
        raise DataError(f"{told} --model. --adapter is for a model in this process.")
    if settings.matchers:
        told = "A server asks the matcher that it was started with: serve with each and compare the runs by"
        raise DataError(f"{told} `lvlm-guard eval compare`. --matcher is for a model in this process.")
    for here in (name for name in settings.methods if name == MATCHER or name.endswith("-random")):
        told = "needs the matcher itself, and a server's can't be reached from here: leave it out of --methods"
        raise DataError(f"{here!r} {told}, or ask a model in this process (without --server).")


def _with_knobs(settings: Settings, known: Knobs) -> Settings:
    """Return settings with the server's own knobs under the user's, so that controls match what is served."""
    knobs = {}
    for method, there in known.items():
        # only what a number decides: the rest (a matcher, a mode) acts at the server, not on what stands beside it
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(methods.REGISTRY.get(method))}
        usual = {name: kind for name, kind in kinds.items() if kind in (int, float)}
        typed = {k: usual[k](value) for k, value in there.items() if k in usual and isinstance(value, int | float)}
        if method != APC or APC in settings.methods:
            knobs[method] = typed | dict(settings.knobs.get(method, {}))
    return replace(settings, knobs=knobs)


def _sent(decoder: Decoder, settings: Settings, known: Knobs) -> dict[str, Any]:
    """Return the knobs that a decoder's requests ask for: the user's, those of a sweep, and APC's cut."""
    if decoder.method is None:
        return {}
    names = {*settings.knobs.get(decoder.method, {}), *decoder.point, *(["beta"] if decoder.method == APC else [])}
    there = known[decoder.method]
    for name in sorted(names - there.keys()):
        has = ", ".join(sorted(there)) or "none"
        raise KnobError(f"The server takes no knob {name!r} for {decoder.method}. It has: {has}.")
    return {name: decoder.knobs[name] for name in sorted(names)}


def _line(endpoint: Endpoint, plain: str, decoder: Decoder, sent: Mapping[str, Any]) -> Line:
    body: dict[str, Any] = {"temperature": 0.0}
    if decoder.sampled:
        body = {name: float(decoder.options[name]) for name in ("temperature", "top_p")}
        if endpoint.served[plain] == "vllm":  # a checkpoint's own top-k would cut the tail; other servers know none
            body["top_k"] = -1
    name = f"{plain}-{decoder.method}" if decoder.method else plain
    return Line(decoder, name, body | guard_fields(decoder.method, sent), sent)


def _flags(asker: ServerAsker, settings: Settings, decoders: Sequence[Decoder], replies: Sequence[Any]) -> list[str]:
    own = {d.name: d.guard(0) for d in decoders if d.runs and d.role == "method" and not d.sampled and not d.point}
    left = [f"{name}-random" for name, method in own.items() if hasattr(method, "matcher") and method.branches()]
    left += [MATCHER for method in own.values() if hasattr(method, "matcher") and not method.branches()][:1]
    left += [] if any(d.method == APC for d in decoders) else [APC]
    silent, guarded = not asker.tells, any(d.method for d in decoders)
    drawn, unended = any(d.sampled for d in decoders), any(one.choices[0].finish_reason is None for one in replies)
    told = {
        f"Asked at {asker.endpoint.url}: weights, number format and default sampling are the server's own. Seconds "
        "hold the network; model calls, masks and memory are not measured.": True,
        f"Controls that this server can't be asked for were left out: {', '.join(left)}.": settings.controls and left,
        "The server tells no log-probabilities: without scores there is no AUROC, matched accuracy or tilt.": silent,
        "Scores are the server's log-probabilities, a guard's behind its plausibility cut.": not silent and guarded,
        "Samples are drawn by the server, with a seed a document; they repeat as far as it heeds `seed`.": drawn,
        "The server tells no usage: tokens are counted in words.": any(one.usage is None for one in replies),
        "The server does not say why an answer ended: one as long as the limit is taken to be cut.": unended,
    }
    return [sentence for sentence, holds in told.items() if holds]
