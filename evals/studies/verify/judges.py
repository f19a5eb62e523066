"""Who says how probable it is that an object is in a picture: matchers, and detectors on an untuned CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL.Image import Image

from lvlm_guard.errors import TextError, UnsupportedCallError
from lvlm_guard.evals.studies.verify.mentions import Mention
from lvlm_guard.matching import Matcher, Vocabulary
from lvlm_guard.verify.check import SWAPS, claim_of, verify_objects

Columns = dict[str, list[float]]
"""Name -> a number for each mention of one description."""


class Judge(Protocol):
    """Anything that is asked about the mentions of one description."""

    @property
    def version(self) -> str:
        """What tells its answers from another one's."""
        ...

    def __call__(self, image: Image, mentions: Sequence[Mention]) -> Columns:
        """Return its columns for the mentions of a picture's description, at least one."""
        ...


class MatcherJudge:
    """A matcher, as `generate(verify=True)` asks it.

    Columns: `p` and `doubtful` (0 or 1) of the verdict, and `swaps`, 1 where it stood against counterfactual swaps, as
    it does where the matcher compares; there also `score_p` and `score_doubtful`, its own probability, if it has one.

    Args:
        matcher: that judges.
        vocabulary: all that could be named; swaps are drawn from it.

    Raises:
        UnsupportedCallError: it can't judge claims.
    """

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary) -> None:
        self.matcher, self.vocabulary = matcher, vocabulary
        self.scores = matcher.compares and _has_support(matcher)
        if not matcher.compares:
            matcher.require_support()

    @property
    def version(self) -> str:
        """The matcher's."""
        return f"verdict {self.matcher.version}"

    def __call__(self, image: Image, mentions: Sequence[Mention]) -> Columns:
        """Return the matcher's columns."""
        objects = [mention.object for mention in mentions]
        columns: Columns = {}
        for prefix, swaps in {"": SWAPS, "score_": 0}.items() if self.scores else [("", SWAPS)]:
            verdicts = verify_objects(self.matcher, [image], objects, self.vocabulary, swaps=swaps)
            columns[f"{prefix}p"] = [verdicts[name].p_supported for name in objects]
            columns[f"{prefix}doubtful"] = [float(verdicts[name].doubtful) for name in objects]
            if not prefix:
                columns["swaps"] = [float(verdicts[name].kind == "swaps") for name in objects]
        return columns


class ClipJudge:
    """What an untuned CLIP says, as published detectors read it.

    Columns: `p` and `doubtful`, its Platt-scaled score, where it is calibrated; `object`, S(object), the cosine of the
    picture and "a photo of a dog"; `sentence`, S of the sentence that holds the mention: the detector of CLIP-guided
    decoding (Deng et al., arXiv:2402.15300). F-CLIPScore (Oh and Hwang, arXiv:2502.20034), the mean of S of a sentence
    and S of its nouns, is for one mention the mean of the two columns.

    Args:
        matcher: an untuned CLIP.
        vocabulary: as in `MatcherJudge`.

    Raises:
        UnsupportedCallError: it does not compare texts.
    """

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary) -> None:
        if not matcher.compares:
            raise UnsupportedCallError(
                f"The matcher {matcher.version!r} compares no texts by similarity, so the detectors that stand on CLIP "
                "can't be measured: give the folder or hub id of a CLIP."
            )
        self.matcher, self.vocabulary = matcher, vocabulary
        self.calibrated = _has_support(matcher)

    @property
    def version(self) -> str:
        """The CLIP's."""
        return f"clip {self.matcher.version}"

    def __call__(self, image: Image, mentions: Sequence[Mention]) -> Columns:
        """Return the CLIP's columns."""
        objects = [mention.object for mention in mentions]
        claims = [claim_of(self.matcher, name) for name in objects]
        said = {text: self._cosine(image, text) for text in dict.fromkeys(mention.sentence for mention in mentions)}
        columns: Columns = {
            "object": self.matcher.similarity([image], claims)[0].tolist(),
            "sentence": [said[mention.sentence] for mention in mentions],
        }
        if self.calibrated:
            verdicts = verify_objects(self.matcher, [image], objects, self.vocabulary, swaps=0)
            columns["p"] = [verdicts[name].p_supported for name in objects]
            columns["doubtful"] = [float(verdicts[name].doubtful) for name in objects]
        return columns

    def _cosine(self, image: Image, sentence: str) -> float:
        """Return S of a sentence; one that is too long for the CLIP is cut, as CLIPScore does."""
        words = sentence.split()
        while True:
            try:
                return float(self.matcher.similarity([image], [" ".join(words)])[0, 0])
            except TextError:
                if len(words) < 2:
                    raise
                words = words[: len(words) * 9 // 10]


def _has_support(matcher: Matcher) -> bool:
    try:
        matcher.require_support()
    except UnsupportedCallError:
        return False
    return True
