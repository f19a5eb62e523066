"""What a request that `vote` guards carries: its knobs, and how far the picture supports each claim.

    vllm_xargs = {"guard": "vote", "guard_scores": <text>, "guard_claim": <text>, "guard_lam": 1.0, "guard_beta": 0.1}

The scores are of the claims that `claims_of(question)` names: the question itself where it wants yes or no
(`guard_claim`), and one claim about each object of the served vocabulary unless that question is all that is asked.
All of them or none: with one missing, the tokens of that object would pass unvoted under the guard's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.asking import wanted, yes_no_claim
from lvlm_guard.matching.claims import Choice
from lvlm_guard.matching.vocabulary import claim_about
from lvlm_guard.matching.voting import QUESTION, odds_of
from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.errors import ServeError, WireError
from lvlm_guard.serve.knobs import method_of, named
from lvlm_guard.serve.wire import MOST_SCORES, pack_scores, unpack_scores

OBJECTS = "LVLM_GUARD_OBJECTS"
"""Environment variable that names what is voted on in free text, for all processes of a server: "coco" (the
default) or the path of a list, as `Vocabulary.of` reads it."""

VOCABULARY = "lvlm_guard_objects"
"""Key of vLLM's `additional_config` that holds the same list word by word: an engine's workers on other machines
have neither the environment nor the file."""

Listed = str | tuple[tuple[str, ...], ...]
"""Objects by the name of their list, or word by word."""


@dataclass(frozen=True)
class Ballot:
    """How one request is voted on.

    Args:
        lam: weight of the votes.
        beta: plausibility cut.
        support: object, or `QUESTION` where a yes/no question is asked, -> probability that it holds.
    """

    lam: float
    beta: float
    support: Mapping[str, float]

    @property
    def objects(self) -> bool:
        """Whether objects are voted on."""
        return not self.support.keys() <= {QUESTION}

    def votes(self, choice: Choice) -> list[tuple[int, float]]:
        """Return each token's vote, weighed, in nats."""
        votes = [(token, self.lam * odds) for token, (_, odds) in odds_of(choice, self.support, Vote.again).items()]
        return votes + [(token, self.lam * Vote.ends) for token in choice.ends]


def served_vocabulary() -> Vocabulary:
    """Return the objects that this server votes on, by the environment variable `OBJECTS`.

    Raises:
        KnobError: the list can't be read.
        ServeError: it has a single object, or more than a request can carry.
    """
    return _vocabulary(_served())


def claims_of(question: str) -> tuple[str, ...]:
    """Return what the matcher must score before a question is answered: the claims of `guard_scores`.

    Args:
        question: the last user turn's text.
    """
    asked = wanted(question)
    objects = _claims(_served()) if asked.objects else ()
    return tuple(dict.fromkeys(([] if asked.yes is None else [asked.yes]) + [*objects]))


def kinds_of(question: str) -> str:
    """Return what kinds of claims a question's answer is voted on: "objects", "question" or "question+objects"."""
    asked = wanted(question)
    return "+".join(["question"] * (asked.yes is not None) + ["objects"] * asked.objects)


def ballot_arguments(vote: Vote, question: str, scores: Mapping[str, float]) -> dict[str, Any]:
    """Return the `vllm_xargs` of a request: the inverse of `ballot_of`.

    Args:
        vote: with its knobs.
        question: the last user turn's text.
        scores: of `claims_of(question)`.
    """
    asked = wanted(question).yes
    made: dict[str, Any] = {"guard": Vote.name, "guard_lam": vote.lam, "guard_beta": vote.beta}
    made["guard_scores"] = pack_scores(list(scores), list(scores.values()))
    return made if asked is None else made | {"guard_claim": asked}


def ballot_of(arguments: Mapping[str, Any] | None) -> Ballot | None:
    """Return the ballot of a request, None where it is plain or another method guards it.

    Args:
        arguments: its `vllm_xargs`, `SamplingParams.extra_args` in the engine.

    Raises:
        GuardError: an argument of the guard is unknown, missing or out of range.
    """
    asked = named(arguments)
    if asked is None or asked[0] != Vote.name:
        return None
    given = asked[1]
    scores, claim = given.pop("guard_scores", None), given.pop("guard_claim", None)
    method = cast(Vote, method_of(Vote.name, given))
    if scores is None:
        raise WireError("guard='vote' comes without guard_scores, so nobody votes: ask the matcher service for them.")
    if not isinstance(scores, str):
        unpack_scores(scores)  # says what is wrong
    return Ballot(method.lam, method.beta, _read(scores, claim, _served()))


@lru_cache(maxsize=64)
def _read(text: str, asked: Any, objects: Listed) -> Mapping[str, float]:
    """Return the support of objects and of the question.

    A request is read where it is admitted and again where it is taken into a batch, which may be one process.
    """
    scores, claims = unpack_scores(text), _claims(objects)
    if asked is None or (isinstance(asked, str) and asked in scores and yes_no_claim(asked) == asked):
        own = {} if asked is None else {QUESTION: asked}
        for named in ({name: claim for claim, name in claims.items()} | own, own):
            if named and scores.keys() == set(named.values()):
                return {name: scores[claim] for name, claim in named.items()}
    missing, foreign = claims.keys() - scores.keys(), scores.keys() - claims.keys()
    raise WireError(
        f"guard_scores are of {len(scores)} claims, which are neither a yes/no question nor the server's vocabulary "
        f"({len(claims)} objects{f'; missing {min(missing)!r}' if missing else ''}"
        f"{f'; foreign {min(foreign)!r}' if foreign else ''}). Score what `claims_of` names, and give {OBJECTS} the "
        "same value in all processes."
    )


_told: list[tuple[tuple[str, ...], ...]] = []


def spelled_out(vocabulary: Vocabulary) -> list[list[str]]:
    """Return a vocabulary as JSON can hold it, for `VOCABULARY`."""
    return [list(words) for _, words in vocabulary.objects]


def take_vocabulary(additional_config: Any) -> None:
    """Vote on what an engine's configuration says, in this process; on what `OBJECTS` says where it says nothing."""
    objects = additional_config.get(VOCABULARY) if isinstance(additional_config, dict) else None
    _told[:] = [] if objects is None else [tuple(map(tuple, objects))]


def _served() -> Listed:
    return _told[0] if _told else os.environ.get(OBJECTS) or "coco"


@lru_cache(maxsize=4)
def _vocabulary(objects: Listed) -> Vocabulary:
    vocabulary = Vocabulary.of(objects if isinstance(objects, str) else [", ".join(words) for words in objects])
    if not 2 <= len(vocabulary.names) <= MOST_SCORES:
        # the claim about a single object would look like a yes/no question about it
        raise ServeError(
            f"{OBJECTS}={objects!r} lists {len(vocabulary.names):,} objects: a server votes on 2 to {MOST_SCORES:,}."
        )
    return vocabulary


@lru_cache(maxsize=4)
def _claims(objects: Listed) -> dict[str, str]:
    """Return claim -> object, in the vocabulary's order."""
    return {claim_about(name, Vote.template): name for name in _vocabulary(objects).names}
