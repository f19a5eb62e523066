"""The same tasks against an OpenAI-compatible endpoint: plain and guarded model names, no model in this process.

    ask(Settings(model="llava", server="http://127.0.0.1:8000/v1", methods=("agla", "vote")), "runs/served")

`NAME` answers plainly, `NAME-agla` and the like are guarded; `proof` says how an answer proves it. Before a run,
one small picture is asked about for every decoder; in a run every single answer is checked (`asker`). Knobs are
sent as vLLM's `vllm_xargs` ("agla_alpha": 1.5) and have to come back in the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lvlm_guard import methods
from lvlm_guard.errors import KnobError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.lineup import APC, MATCHER, decoders_of, methods_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.server.asker import Line, ServerAsker
from lvlm_guard.evals.infer.server.endpoint import Endpoint, Reply
from lvlm_guard.evals.spec.settings import Settings


def server_run(
    settings: Settings, endpoint: Endpoint | None = None, concurrency: int = 1
) -> tuple[list[Decoder], ServerAsker, list[str]]:
    """Return the decoders that a server can be asked for, who asks it, and sentences on what this leaves out.

    Args:
        settings: of the run: `server` is the address, `model` the plain model's name there.
        endpoint: the server, where time-outs and retries are to be others.
        concurrency: requests in flight.

    Raises:
        DataError: a model name or a setting that this server can't be asked for.
        KnobError, UnknownNameError: of a method; or the server does not take the knob.
        RunError: it can't be reached, refuses the key, or does not prove that a guard runs.
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
    known = {name: _knobs_there(asker, plain, name) for name in guards}
    decoders = [d for d in decoders_of(_with_knobs(settings, known), None) if d.method is None or d.method in known]
    asked = [d for d in decoders if d.derive is None]
    asker.lines = {d.name: _line(endpoint, plain, d, _sent(d, settings, known)) for d in asked}
    asker.proofs = {}
    replies = [asker.probe(d.name) for d in asked]
    proved = [_as_proved(d, asker) for d in decoders if asker.tells or d.derive is None]
    return proved, asker, _flags(asker, settings, proved, replies)


def _refuse(settings: Settings) -> None:
    """Raise `DataError` on what can't be had from a server."""
    for name in ("device", "dtype", "execution"):
        if getattr(settings, name) != "auto":
            raise DataError(f"{name} is the server's own: leave out --{name}, or --server.")
    if settings.adapters:
        raise DataError(
            "A server loads its adapters itself: serve the model with --lora-modules NAME=DIR and give that name as "
            "--model. --adapter is for a model in this process."
        )
    if settings.matchers:
        raise DataError(
            "A server asks the matcher that it was started with: serve with each and compare the runs by `lvlm-guard "
            "eval compare`. --matcher is for a model in this process."
        )
    for name in settings.methods:
        if name == MATCHER or name.endswith("-random"):
            raise DataError(
                f"{name!r} needs the matcher itself, and a server's can't be reached from here: leave it out of "
                "--methods, or ask a model in this process (without --server)."
            )


def _knobs_there(asker: ServerAsker, plain: str, method: str) -> Mapping[str, Any]:
    """Return the knobs with which a guard runs at the server if none are sent."""
    unguided = Decoder(method, method, lambda _: False, method=method)
    asker.lines[method] = _line(asker.endpoint, plain, unguided, {})
    asker.probe(method)
    return asker.proofs[method].knobs


def _with_knobs(settings: Settings, known: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return settings with the server's own knobs under the user's, so that controls match what is served."""
    knobs = {}
    for method, there in known.items():
        usual: dict[str, Any] = {f.name: f.default for f in fields(methods.REGISTRY.get(method))}
        # only what a number decides: the rest (a matcher, a mode) acts at the server, not on what stands beside it
        typed = {
            knob: type(usual[knob])(value)
            for knob, value in there.items()
            if type(usual.get(knob)) in (int, float) and isinstance(value, int | float)
        }
        knobs[method] = typed | dict(settings.knobs.get(method, {}))
    return replace(settings, knobs={m: k for m, k in knobs.items() if m != APC or APC in settings.methods})


def _sent(decoder: Decoder, settings: Settings, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
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
        body = {"temperature": float(decoder.options["temperature"]), "top_p": float(decoder.options["top_p"])}
        if endpoint.served[plain] == "vllm":  # a checkpoint's own top-k would cut the tail; other servers know none
            body["top_k"] = -1
    if sent:
        body["vllm_xargs"] = {f"{decoder.method}_{knob}": value for knob, value in sent.items()}
    name = plain if decoder.method is None else f"{plain}-{decoder.method}"
    return Line(decoder, name, body, sent)


def _as_proved(decoder: Decoder, asker: ServerAsker) -> Decoder:
    """Return a decoder with the knobs that its answers prove."""
    if decoder.method is None:
        return decoder
    about = f"{decoder.about}, asked as {asker.lines[decoder.name].model}"
    return replace(decoder, knobs=dict(asker.proofs[decoder.name].knobs), about=about)


def _flags(asker: ServerAsker, settings: Settings, decoders: Sequence[Decoder], replies: Sequence[Reply]) -> list[str]:
    flags = [
        f"Asked at {asker.endpoint.url}: weights, number format and default sampling are the server's own. Seconds "
        "hold the network; model calls, masks and memory are not measured."
    ]
    own = {d.name: d.guard(0) for d in decoders if d.guard and d.role == "method" and not d.sampled and not d.point}
    left = [f"{name}-random" for name, method in own.items() if hasattr(method, "matcher") and method.branches()]
    left += [MATCHER for method in own.values() if hasattr(method, "matcher") and not method.branches()][:1]
    left += [] if any(d.method == APC for d in decoders) else [APC]
    if settings.controls and left:
        flags.append(f"Controls that this server can't be asked for were left out: {', '.join(left)}.")
    if not asker.tells:
        flags.append(
            "The server tells no log-probabilities: without scores there is no AUROC, matched accuracy or tilt."
        )
    elif any(d.method for d in decoders):
        flags.append("Scores are the server's log-probabilities, a guard's behind its plausibility cut.")
    if any(d.sampled for d in decoders):
        flags.append("Samples are drawn by the server, with a seed a document; they repeat as far as it heeds `seed`.")
    if any(reply.tokens is None for reply in replies):
        flags.append("The server tells no usage: tokens are counted in words.")
    if any(reply.finish is None for reply in replies):
        flags.append("The server does not say why an answer ended: one as long as the limit is taken to be cut.")
    return flags
