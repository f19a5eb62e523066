"""Which scores of yes/no questions can be ranked: enough of them, of what the model says, and all of one kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lvlm_guard.evals.decoders.derived import LEAST_MASS
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Places
from lvlm_guard.evals.stats.tally import Given, Tally

CENSORED = 0.01
"""Share of scores of which a server told too little, from which on they are not ranked."""


def why_not(tally: Tally, decoder: str) -> str | None:
    """Return why a decoder's scores can't be ranked; "" where they can, None where it has none."""
    given = tally.of(decoder)
    lacking = sum(int(np.isnan(one.score[tally.whole]).sum()) for one in given)
    total = len(given) * int(tally.whole.sum())
    if lacking == total:
        return None
    mass, censored = mean_mass(given), sum(one.censored for one in given)
    if lacking:
        why = f"{lacking} of {total} answers have no score"
    elif censored > CENSORED * total:
        why = f"the server told too little for {censored} of {total} scores (more likely tokens hid yes or no)"
    elif mass is not None and mass < LEAST_MASS:
        why = f"yes and no hold {mass:.2f} of the probability at the first token, which is less than {LEAST_MASS}"
    else:
        return ""
    return f"{decoder} on {tally.name}: {why}, so there is no AUROC, no matched accuracy and no tilt (n/a)."


def bounds(tally: Tally, decoders: Iterable[str]) -> list[str]:
    """Return how many of the scores that are ranked are bounds."""
    found = {name: sum(one.censored for one in tally.of(name)) for name in decoders}
    return [
        f"{name} on {tally.name}: {n} scores are bounds: the server hid yes or no." for name, n in found.items() if n
    ]


def check_kinds(tally: Tally, decoders: Iterable[str]) -> None:
    """See that scores of all decoders are of before a cut, or all of after one.

    Raises:
        DataError: some decoders have infinite scores, and others none.
    """
    after = {name: any(np.isinf(one.score[tally.whole]).any() for one in tally.of(name)) for name in decoders}
    if len(set(after.values())) > 1:
        cut, uncut = (", ".join(name for name in after if after[name] == is_cut) for is_cut in (True, False))
        raise DataError(
            f"{tally.name} has both kinds of score: those of {cut} are after a cut (some are infinite), those of "
            f"{uncut} before. They don't rank alike: give the scores before the cut for all, or leave them out."
        )


def mean_mass(given: Sequence[Given], at: Places | None = None) -> float | None:
    """Return the mean share of the probability on yes or no, of the items `at` (None: all); None: it is not known."""
    mass = np.concatenate([one.mass if at is None else one.mass[at] for one in given])
    known = mass[~np.isnan(mass)]
    return float(known.mean(dtype=np.float64)) if len(known) else None
