"""Who says how probable it is that an object is in a picture: matchers, and what is known without one.

Each is asked about mentions of one picture (items whose question is the object and whose prompt is the sentence that
holds it) and gives one answer a mention and column, worded as `metrics.yes_no.Mentions` reads it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from PIL.Image import Image

from lvlm_guard.errors import TextError, UnsupportedCallError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.logits import odds_of
from lvlm_guard.evals.infer.store import Job, Took
from lvlm_guard.evals.spec.items import Item, Said
from lvlm_guard.matching import Matcher, Vocabulary
from lvlm_guard.verify.check import SWAPS, claim_of, verify_objects

CALIBRATED, SENTENCE, FINE, TOKEN = "calibrated-clip", "clip-sentence", "f-clipscore", "token-probability"
BASELINES = (CALIBRATED, SENTENCE, FINE)
"""What a matcher must beat before it is anybody's default (adapters.md 4.6, numbers 1 to 3)."""


def probable(p: float, doubtful: bool | None) -> Said:
    """Return the answer of a verifier that gives a probability and marks what it doubts; None: it marks nothing."""
    word = {True: "no", False: "yes", None: "p"}[doubtful]
    return Said(f"{word} {p:.6f}", score=odds_of(p), mass=1.0)


@dataclass(eq=False)
class Judge(ABC):
    matcher: Matcher  # that judges
    vocabulary: Vocabulary  # all that could be named; swaps are drawn from it
    place: str = ""  # registered name, folder or hub id that it is from
    name: str = ""  # of the matcher in the run; "" for the baselines
    training: int = 0  # its number among those of that name
    columns: dict[str, str] = field(init=False)  # name of who answers -> what it is, for people

    @property
    def calibrated(self) -> bool:
        """Whether the matcher has a probability of its own."""
        try:
            self.matcher.require_support()
        except UnsupportedCallError:
            return False
        return True

    @property
    def decoders(self) -> list[Decoder]:
        """Its columns as who answers."""
        found = []
        for name, about in self.columns.items():
            role: Any = "matcher" if self.name else "reference" if name == CALIBRATED else "control"
            beside = None if name == CALIBRATED else CALIBRATED
            found.append(Decoder(name, about, (), role=role, baseline=beside, matchers=(self.place,)))
        return found

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        """Answer all of some jobs, as an `Asker` does."""
        for job in jobs:
            found: dict[str, list[Said]] = {column: [] for column in self.columns}
            for _, group in groupby(job.items, key=lambda item: item.picture):
                mine, began = list(group), time.perf_counter()
                columns = self(mine[0].pictures()[0], mine)
                seconds = (time.perf_counter() - began) / len(mine) / len(columns)
                for column, said in columns.items():
                    found[column] += (replace(one, seconds=seconds) for one in said)
            for who in job.todo:
                took(job, who, found[who[0]])

    @abstractmethod
    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        """Return column -> an answer for each mention of one picture."""

    def verdicts(self, image: Image, items: Sequence[Item], swaps: int) -> list[Said]:
        """Return the matcher's verdicts; without swaps its own probability."""
        objects = [item.question for item in items]
        found = verify_objects(self.matcher, [image], objects, self.vocabulary, swaps=swaps)
        return [probable(found[name].p_supported, found[name].doubtful) for name in objects]


@dataclass(eq=False)
class MatcherJudge(Judge):
    """A matcher, as `generate(verify=True)` asks it: its verdict, against counterfactual swaps where it compares; there
    also its own probability, if it has one and `scores` wants it. Raises `UnsupportedCallError` where it can't judge.
    """

    scores: bool = True

    def __post_init__(self) -> None:
        if not self.matcher.compares:
            self.matcher.require_support()
        how = "counterfactual swaps" if self.matcher.compares else "its own probability"
        self.columns = {self.name: f"verdict by {how}"}
        if self.matcher.compares and self.scores and self.calibrated:
            self.columns[f"{self.name}.score"] = "its own probability"

    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        return {column: self.verdicts(image, items, SWAPS * (column == self.name)) for column in self.columns}


@dataclass(eq=False)
class ClipJudge(Judge):
    """What an untuned CLIP says, as published detectors read it, and the model's own probability of the word.

    Columns: the CLIP's Platt-scaled score, where it is calibrated, else S(object), the cosine of the picture and "a
    photo of a dog"; S of the sentence that holds the mention: the detector of CLIP-guided decoding (Deng et al.,
    arXiv:2402.15300); F-CLIPScore (Oh and Hwang, arXiv:2502.20034), which for one mention is the mean of S of the
    sentence and S of the noun. Raises `UnsupportedCallError` where the matcher does not compare texts.
    """

    def __post_init__(self) -> None:
        if not self.matcher.compares:
            told = f"The matcher {self.matcher.version!r} compares no texts, which detectors on CLIP stand on"
            raise UnsupportedCallError(f"{told}: give the folder or hub id of a CLIP.")
        how = "Platt-scaled cosine" if self.calibrated else "cosine (as AUROC goes, Platt-scaled)"
        self.columns = {
            CALIBRATED: f"untuned CLIP, {how}",
            SENTENCE: "CLIP-guided decoding's detector: S(sentence), untuned CLIP",
            FINE: "F-CLIPScore: mean of S(sentence) and S(noun), untuned CLIP",
            TOKEN: "the model's own probability of the word",
        }

    def __call__(self, image: Image, items: Sequence[Item]) -> dict[str, list[Said]]:
        claims = [claim_of(self.matcher, item.question) for item in items]
        nouns = self.matcher.similarity([image], claims)[0].tolist()
        said = {text: self._cosine(image, text) for text in dict.fromkeys(item.prompt for item in items)}
        sentences = [said[item.prompt] for item in items]
        fine = [(a + b) / 2 for a, b in zip(nouns, sentences, strict=True)]
        scores = {CALIBRATED: nouns, SENTENCE: sentences, FINE: fine}
        found = {column: [Said(f"{s:.6f}", score=s) for s in each] for column, each in scores.items()}
        found |= {CALIBRATED: self.verdicts(image, items, 0)} if self.calibrated else {}
        return found | {TOKEN: [probable(item.tags["probability"], None) for item in items]}

    def _cosine(self, image: Image, sentence: str) -> float:
        """Return S of a sentence; one that is too long for the CLIP is cut, as CLIPScore does."""
        words = sentence.split()
        try:
            return float(self.matcher.similarity([image], [" ".join(words)])[0, 0])
        except TextError:
            if len(words) < 2:
                raise
            return self._cosine(image, " ".join(words[: len(words) * 9 // 10]))
