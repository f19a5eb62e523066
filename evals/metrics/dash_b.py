"""DASH-B: can you see it? Pictures that were found because they make models see what is not there.

Source: Augustin et al., "DASH: Detection and Assessment of Systematic Hallucinations of VLMs", arXiv:2503.23573,
YanNeu/DASH-B at 1538d01 (no licence: nothing of it is kept here). Its script prints accuracy, TPR, TNR and the harmonic
mean of these two; it reads as RePOPE's does, but an answer that it can't read is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from lvlm_guard.evals.metrics.metric import Array, Score, share
from lvlm_guard.evals.metrics.repope import SCRIPTS, START, script_counts
from lvlm_guard.evals.metrics.yes_no import WIDTH, YesNo


class DashB(YesNo):
    """Yes/no questions with TPR (which is `recall`), TNR and their harmonic mean, by both readings."""

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of `YesNo` and DASH-B's."""
        ours = {name: score for name, score in super().scores().items() if not name.endswith(SCRIPTS)}
        return (
            ours
            | {"tnr": Score(lambda c: _rates(c, 0)[1]), "harmonic_mean": Score(lambda c: harmonic(*_rates(c, 0)))}
            | {
                "accuracy_official": Score(
                    lambda c: share(c[..., START] + c[..., START + 2], c[..., 4]), compared=False
                ),
                "tpr_official": Score(lambda c: _rates(c, START)[0], compared=False),
                "tnr_official": Score(lambda c: _rates(c, START)[1], compared=False),
                "harmonic_mean_official": Score(lambda c: harmonic(*_rates(c, START)), compared=False),
            }
        )

    def _read(self, text: str, yes: bool) -> list[int]:
        return [*super()._read(text, yes)[:START], *script_counts(text, yes), *[0] * (WIDTH - START - 4)]


def harmonic(tpr: Array, tnr: Array) -> Array:
    """Return 2 TPR TNR / (TPR + TNR), and 0 where both are 0."""
    return share(2 * tpr * tnr, tpr + tnr)


def _rates(c: Array, start: int) -> tuple[Array, Array]:
    """Return TPR and TNR by the tp, fp, tn, fn that begin at a column, an unread answer against its class."""
    return share(c[..., start], c[..., 6]), share(c[..., start + 2], c[..., 4] - c[..., 6])
