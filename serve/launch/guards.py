"""Which guards a model is served with."""

from __future__ import annotations

from collections.abc import Iterable

from lvlm_guard.errors import did_you_mean
from lvlm_guard.proof import KNOBS
from lvlm_guard.serve.engine.arguments import TWIN
from lvlm_guard.serve.engine.plugin import BOTH_WAYS, FAMILIES
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.checkpoint import Checkpoint


def guards_of(asked: tuple[str, ...] | None, checkpoint: Checkpoint, *, cpu: bool = False) -> tuple[str, ...]:
    """Return the guards to serve.

    Args:
        asked: by the user; None for those that suit the model.
        checkpoint: the model.
        cpu: whether vLLM is a build for CPUs.

    Raises:
        ServeError: one can't be served, or not with this model.
    """
    lacking = _no_twin(checkpoint, cpu)
    if asked is None:
        return ("vote",) if lacking else ("agla", "vote")
    if not asked:
        raise ServeError(f"No guard is named: give --guards some of {', '.join(KNOBS)}, or leave it out.")
    for guard in asked:
        if guard not in KNOBS:
            raise ServeError(f"{guard!r} can't be served. {did_you_mean(guard, KNOBS)}Known: {', '.join(KNOBS)}.")
    if (needs := branched(asked)) and lacking:
        raise ServeError(
            f"{', '.join(needs)} compares two readings of the picture, for which a model needs a twin, and "
            f"{checkpoint.architecture or checkpoint.name} has none{lacking} These have one: {', '.join(FAMILIES)}. "
            "Any model can be served with --guards vote,apc."
        )
    return tuple(dict.fromkeys(asked))


def _no_twin(checkpoint: Checkpoint, cpu: bool) -> str:
    """Return the end of a sentence that says why a model has no twin; "" where it has one."""
    if cpu and checkpoint.architecture in BOTH_WAYS:
        return " here: it reads a picture's tokens both ways, and vLLM's attention for CPUs reads them causally."
    if checkpoint.architecture == "InternVLChatModel":
        return ", since its code is the checkpoint's own: serve the one with -hf behind its name."
    return "" if checkpoint.twin else "."


def branched(guards: Iterable[str]) -> list[str]:
    """Return those of the guards that need a second branch, and so a twin."""
    return [guard for guard in guards if guard in TWIN and TWIN[guard]().branches()]
