"""Which guards a model is served with."""

from __future__ import annotations

from lvlm_guard.errors import did_you_mean
from lvlm_guard.proof import KNOBS
from lvlm_guard.serve.engine.plugin import MODULES
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.checkpoint import Checkpoint


def guards_of(asked: tuple[str, ...] | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the guards to serve.

    Raises:
        ServeError: one can't be served, or not with this model.
    """
    if asked is None:
        return ("agla", "vote") if checkpoint.twin else ("vote",)
    if not asked:
        raise ServeError(f"No guard is named: give --guards some of {', '.join(KNOBS)}, or leave it out.")
    for guard in asked:
        if guard not in KNOBS:
            raise ServeError(f"{guard!r} can't be served. {did_you_mean(guard, KNOBS)}Known: {', '.join(KNOBS)}.")
    needs = [guard for guard in asked if guard != "vote"]
    if needs and not checkpoint.twin:
        raise ServeError(
            f"{', '.join(needs)} compares two readings of the picture, for which a model needs a twin, and "
            f"{checkpoint.architecture or checkpoint.name} has none. These have one: {', '.join(MODULES)}. Any model "
            "can be served with --guards vote."
        )
    return tuple(dict.fromkeys(asked))
