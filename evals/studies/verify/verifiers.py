"""From what judges said to the verifiers that stand side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.bootstrap import Array
from lvlm_guard.evals.studies.verify.rows import BASELINES, CALIBRATED, FINE, MODEL, SENTENCE, TOKEN, Verifier


@dataclass(frozen=True)
class Judged:
    """What one judge said of all mentions.

    Args:
        version: the judge's.
        columns: name -> [n], see `lvlm_guard.evals.studies.verify.judges`.
        seconds: a picture, of judging.
    """

    version: str
    columns: Mapping[str, Array]
    seconds: float


def verifiers_of(
    matchers: Mapping[str, Sequence[str]], judged: Mapping[tuple[str, int], Judged], token_probability: Array
) -> list[Verifier]:
    """Return all verifiers, the baselines first.

    Args:
        matchers: name -> one place for each training.
        judged: (name, training) -> what was said; ("", 0) is the untuned CLIP of the baselines.
        token_probability: [n], that the model itself gave each mention.

    Raises:
        DataError: a matcher has the name of a baseline.
    """
    clip = judged["", 0]
    return [*_baselines(clip, token_probability), *_matchers(matchers, judged, clip)]


def check_names(names: Sequence[str]) -> None:
    """Raise `DataError` where a matcher has a name that stands for something else in the rows."""
    for name in names:
        if name in (*BASELINES, TOKEN, MODEL):
            raise DataError(f"--matcher {name}: {name!r} is the name of a baseline here; give the matcher another one.")


def _baselines(clip: Judged, token_probability: Array) -> Iterator[Verifier]:
    said, calibrated = clip.columns, "p" in clip.columns
    yield Verifier(
        CALIBRATED,
        "untuned CLIP, Platt-scaled cosine" if calibrated else "untuned CLIP, cosine (as AUROC goes, Platt-scaled)",
        "baseline",
        [said["p"] if calibrated else said["object"]],
        probability=calibrated,
        marks=[said["doubtful"]] if calibrated else (),
    )
    yield Verifier(
        SENTENCE, "CLIP-guided decoding's detector: S(sentence), untuned CLIP", "baseline", [said["sentence"]], False
    )
    both = (said["sentence"] + said["object"]) / 2
    yield Verifier(FINE, "F-CLIPScore: mean of S(sentence) and S(noun), untuned CLIP", "baseline", [both], False)
    yield Verifier(TOKEN, "the model's own probability of the word", "baseline", [token_probability])


def _matchers(
    matchers: Mapping[str, Sequence[str]], judged: Mapping[tuple[str, int], Judged], clip: Judged
) -> Iterator[Verifier]:
    for name, places in matchers.items():
        each = [judged[name, number] for number in range(len(places))]
        compared = any(one.columns["swaps"].any() for one in each)
        about = "verdict by counterfactual swaps" if compared else "verdict by its own probability"
        trained = f", {len(each)} trainings" if len(each) > 1 else ""
        yield Verifier(
            name,
            about + trained,
            "matcher",
            [one.columns["p"] for one in each],
            marks=[one.columns["doubtful"] for one in each],
        )
        scored = all("score_p" in one.columns for one in each)
        same = [one.version.partition(" ")[2] for one in each] == [clip.version.partition(" ")[2]]
        if scored and not (same and "p" in clip.columns):  # the untuned CLIP's own score stands there already
            yield Verifier(
                f"{name}.score",
                "its own probability" + trained,
                "score",
                [one.columns["score_p"] for one in each],
                marks=[one.columns["score_doubtful"] for one in each],
            )
