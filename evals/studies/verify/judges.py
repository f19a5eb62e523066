"""Who says how probable it is that an object is in a picture: matchers, and detectors on an untuned CLIP.

Each is asked about mentions of one picture (items whose question is the object and whose prompt is the sentence that
holds it) and gives one answer a mention and column, worded as `metrics.mentions` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from lvlm_guard.errors import TextError, UnsupportedCallError
from lvlm_guard.evals.decoders.scores import odds_of
from lvlm_guard.evals.spec.items import Item, Said
from lvlm_guard.matching import Matcher, Vocabulary
from lvlm_guard.verify.check import SWAPS, claim_of, verify_objects

CALIBRATED, SENTENCE, FINE, TOKEN = "calibrated-clip", "clip-sentence", "f-clipscore", "token-probability"
BASELINES = (CALIBRATED, SENTENCE, FINE)
"""What a matcher must beat before it is anybody's default (adapters.md 4.6, numbers 1 to 3)."""

VERDICT, SCORE = "", ".score"
"""Columns of a matcher; a column's name follows the matcher's."""


def probable(p: float, doubtful: bool) -> Said:
    """Return the answer of a verifier that gives a probability and marks what it doubts."""
    return Said(f"{'no' if doubtful else 'yes'} {p:.6f}", score=odds_of(p), mass=1.0)


class Judge:
    """Whoever is asked about mentions.

    Args:
        matcher: that judges.
        vocabulary: all that could be named; swaps are drawn from it.
    """

    columns: dict[str, str]  # column -> what it is, for people

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary) -> None:
        self.matcher, self.vocabulary, self.version = matcher, vocabulary, matcher.version
        self.calibrated = True  # whether the matcher has a probability of its own
        try:
            matcher.require_support()
        except UnsupportedCallError:
            self.calibrated = False

    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        """Return column -> an answer for each mention."""
        raise NotImplementedError

    def verdicts(self, image: Image, items: Sequence[Item], swaps: int) -> list[Said]:
        """Return the matcher's verdicts; without swaps its own probability."""
        objects = [item.question for item in items]
        found = verify_objects(self.matcher, [image], objects, self.vocabulary, swaps=swaps)
        return [probable(found[name].p_supported, found[name].doubtful) for name in objects]


class MatcherJudge(Judge):
    """A matcher, as `generate(verify=True)` asks it: its verdict, against counterfactual swaps where it compares; there
    also its own probability, if it has one.

    Args:
        matcher, vocabulary: as of every judge.
        scores: whether its own probability stands beside a verdict by swaps.

    Raises:
        UnsupportedCallError: it can't judge claims.
    """

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary, scores: bool = True) -> None:
        super().__init__(matcher, vocabulary)
        if not matcher.compares:
            matcher.require_support()
        swaps = "verdict by counterfactual swaps" if matcher.compares else "verdict by its own probability"
        own = {SCORE: "its own probability"} if scores and matcher.compares and self.calibrated else {}
        self.columns = {VERDICT: swaps} | own

    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        """Return the matcher's columns."""
        return {column: self.verdicts(image, items, 0 if column == SCORE else SWAPS) for column in self.columns}


class ClipJudge(Judge):
    """What an untuned CLIP says, as published detectors read it.

    Columns: its Platt-scaled score, where it is calibrated, else S(object), the cosine of the picture and "a photo of a
    dog"; S of the sentence that holds the mention: the detector of CLIP-guided decoding (Deng et al.,
    arXiv:2402.15300); and F-CLIPScore (Oh and Hwang, arXiv:2502.20034), which for one mention is the mean of S of the
    sentence and S of the noun.

    Raises:
        UnsupportedCallError: the matcher does not compare texts.
    """

    def __init__(self, matcher: Matcher, vocabulary: Vocabulary) -> None:
        if not matcher.compares:
            raise UnsupportedCallError(
                f"The matcher {matcher.version!r} compares no texts by similarity, so the detectors that stand on CLIP "
                "can't be measured: give the folder or hub id of a CLIP."
            )
        super().__init__(matcher, vocabulary)
        how = "Platt-scaled cosine" if self.calibrated else "cosine (as AUROC goes, Platt-scaled)"
        self.columns = {
            CALIBRATED: f"untuned CLIP, {how}",
            SENTENCE: "CLIP-guided decoding's detector: S(sentence), untuned CLIP",
            FINE: "F-CLIPScore: mean of S(sentence) and S(noun), untuned CLIP",
        }

    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        """Return the CLIP's columns."""
        claims = [claim_of(self.matcher, item.question) for item in items]
        nouns = self.matcher.similarity([image], claims)[0].tolist()
        said = {text: self._cosine(image, text) for text in dict.fromkeys(item.prompt for item in items)}
        sentences = [said[item.prompt] for item in items]
        fine = [(a + b) / 2 for a, b in zip(nouns, sentences, strict=True)]
        scores = {CALIBRATED: nouns, SENTENCE: sentences, FINE: fine}
        found = {column: [Said(f"{s:.6f}", score=s) for s in each] for column, each in scores.items()}
        return found | ({CALIBRATED: self.verdicts(image, items, 0)} if self.calibrated else {})

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
