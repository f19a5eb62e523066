"""Search over readable prompts without gradients: seeds, a proposer, a fitness, a budget; and what a result is worth.

Rows 3, 5, 30, 37 and 53 of the project's works are proposers, fitnesses and reports of this one loop. An LLM's replies
are untrusted text: only lines that are whole prompts are taken, others are dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import rel_entr

from lvlm_guard.errors import KnobError

LONGEST = 200  # characters of a prompt
SLOT = "{object}"
ARTICLE = "{article}"


@dataclass
class History:
    """What was tried: each prompt's fitness, in the order of trying, and how many proposals were dropped."""

    fitness: dict[str, float] = field(default_factory=dict)
    dropped: int = 0

    @property
    def best(self) -> str:
        """The fittest prompt, of equal ones the earliest."""
        return max(self.fitness, key=lambda prompt: self.fitness[prompt])

    def top(self, k: int, *, worst: bool = False) -> list[tuple[str, float]]:
        """Return the best k with their fitness, the best first, or the worst; at most half of what was tried."""
        ranked = sorted(self.fitness.items(), key=lambda pair: -pair[1])
        return (ranked[::-1] if worst else ranked)[: min(k, max(1, len(ranked) // 2))]


Propose = Callable[[History, int, np.random.Generator], Sequence[str]]
"""(what was tried, how many are wanted, random) -> prompts with `{object}` where the name goes."""

Fitness = Callable[[Sequence[str]], Sequence[float]]
"""Prompts -> a number each, higher is better."""


def search(
    seeds: Sequence[str], propose: Propose, fitness: Fitness, budget: int, rng: np.random.Generator, *, at_once: int = 8
) -> History:
    """Try prompts until the budget of evaluations is spent, or three rounds bring nothing new.

    Raises `KnobError` where no seed is a prompt, or the budget is not above 0.
    """
    history, fruitless = History(), 0
    wanted: Sequence[str] = seeds
    if budget < 1 or not any(map(is_prompt, seeds)):
        raise KnobError(f"A search needs a seed with {SLOT} in it and a budget of 1 or more; got {seeds!r}, {budget}.")
    while len(history.fitness) < budget and fruitless < 3:
        new = list(dict.fromkeys(text.strip() for text in wanted if is_prompt(text)))
        new = [text for text in new if text not in history.fitness][: budget - len(history.fitness)]
        history.dropped += len(wanted) - len(new)
        history.fitness |= dict(zip(new, map(float, fitness(new)), strict=True)) if new else {}
        fruitless = 0 if new else fruitless + 1
        wanted = propose(history, at_once, rng)
    return history


def is_prompt(text: str) -> bool:
    """Tell whether a line is a prompt: one slot, printable, not too long."""
    text = text.strip()
    rest = text.replace(ARTICLE, "").replace(SLOT, "")
    return text.count(SLOT) == 1 and len(text) <= LONGEST and text.isprintable() and not set("{}") & set(rest)


def edits(words: Sequence[str], *, crossed: int = 2, keep: int = 4) -> Propose:
    """Return a proposer that needs no LLM: a word added, taken away or exchanged in one of the best, or two crossed.

    One of `crossed` proposals is a cross-over; the best `keep` prompts are edited.
    Source: ProAPO (arXiv:2502.19844), whose edits an LLM words; here they are drawn from `words`.
    """

    def propose(history: History, n: int, rng: np.random.Generator) -> list[str]:
        best = [prompt.split() for prompt, _ in history.top(keep)]
        made = []
        for k in range(n):
            one = list(best[int(rng.integers(len(best)))])
            if k % crossed == 0 and len(best) > 1:
                other = best[int(rng.integers(len(best)))]
                at = one.index(SLOT) if SLOT in one else len(one)
                tail = other[other.index(SLOT) :] if SLOT in other else [SLOT]
                made.append(" ".join([*one[:at], *tail]))
                continue
            place, kind = int(rng.integers(len(one) + 1)), int(rng.integers(3))
            free = [at for at, word in enumerate(one) if word not in (SLOT, ARTICLE)]
            if kind == 0 or not free:
                one.insert(place, str(rng.choice(words)))
            elif kind == 1:
                one.pop(int(rng.choice(free)))
            else:
                one[int(rng.choice(free))] = str(rng.choice(words))
            made.append(" ".join(one))
        return made

    return propose


def climbing(words: Sequence[str], *, patience: int = 5) -> Propose:
    """Return a hill-climber: edits of the best prompt; after `patience` rounds without a better one, of a seed again.

    Source: the search of "Language Models as Black-Box Optimizers" (arXiv:2309.05950), by edits instead of an LLM.
    """
    state = {"best": -math.inf, "since": 0}
    propose = edits(words, crossed=10**9, keep=1)

    def climb(history: History, n: int, rng: np.random.Generator) -> list[str]:
        best = history.fitness[history.best]
        state["since"] = 0 if best > state["best"] else state["since"] + 1
        state["best"] = max(best, state["best"])
        if state["since"] >= patience:
            state["since"] = 0
            seed = next(iter(history.fitness))
            return list(propose(History({seed: 0.0}), n, rng))
        return list(propose(history, n, rng))

    return climb


def chatting(chat: Callable[[str], str], *, k: int = 5, worst: bool = False, captions: Sequence[str] = ()) -> Propose:
    """Return a proposer that asks an LLM, which sees the best prompts with their scores.

    Source: IPO (arXiv:2410.15397), which tells captions of pictures too; "Language Models as Black-Box Optimizers"
    (arXiv:2309.05950) and GLOV (arXiv:2410.06154), which tell the worst as well. GLOV's steering of the LLM's hidden
    states is not here.

    Args:
        chat: message -> reply, a prompt a line.
        k: prompts told of; as many of the `worst` too, if asked for.
        captions: of pictures of the task.
    """

    def propose(history: History, n: int, rng: np.random.Generator) -> list[str]:
        told = [f"Write {n} templates for captions of pictures, one a line, each with {SLOT} once."]
        told += ["The pictures: " + " / ".join(captions)] if captions else []
        told += ["Good ones, with their scores:", *(f"{score:.4f} {prompt}" for prompt, score in history.top(k))]
        if worst:
            told += ["Bad ones:", *(f"{score:.4f} {prompt}" for prompt, score in history.top(k, worst=True))]
        return chat("\n".join(told)).splitlines()

    return propose


def mixed(scores: NDArray[np.float64], true: NDArray[np.bool_], *, loss: float = 0.1) -> float:
    """Return a fitness of logits [n] of claims: balanced accuracy at 0 less a share of the cross entropy.

    A prompt that is as accurate but worse calibrated loses, as in ProAPO (arXiv:2502.19844), whose weights are others.
    """
    parts = [(scores[true] > 0).mean(), (scores[~true] <= 0).mean()]
    entropy = [np.logaddexp(0, -scores[true]).mean(), np.logaddexp(0, scores[~true]).mean()]
    return float(np.mean(parts) - loss * np.mean(entropy))


def bound(err: float, n: int, nats: float, *, delta: float = 0.05) -> float:
    """Return what the error of a chosen prompt is below, with probability 1 - delta over the n pictures of its choice.

    The largest q with kl(err || q) <= (nats + ln(2 sqrt(n) / delta)) / n, err the error on these pictures, nats minus
    the log-probability of the prompt, or of all prompts together, under the prior.
    Source: PAC-Bayes for prompts (Akinwande et al., arXiv:2310.03957), prior = a language model.

    Raises:
        KnobError: an argument outside its range.
    """
    if not 0 <= err <= 1 or n < 1 or nats < 0 or not 0 < delta < 1:
        given = f"err {err}, n {n}, nats {nats}, delta {delta}"
        raise KnobError(f"{given}: give an error rate, a number, and 0 < delta < 1.")
    right = (nats + math.log(2 * math.sqrt(n) / delta)) / n

    def excess(q: float) -> float:
        return float(rel_entr(err, q) + rel_entr(1 - err, 1 - q)) - right

    if err == 1 or excess(1 - 1e-12) <= 0:
        return 1.0
    return float(brentq(excess, err, 1 - 1e-12)) if right > 0 else err
