"""What the canary asks of each guard: questions whose answers are known for any checkpoint, without a reference.

    cut        beta 1 keeps one token: every log-probability is 0. The processor acts, and its results are reported.
    plain      a weight of 0 and a beta of nearly 0 is plain decoding: the plain name's log-probabilities. Rows fit.
    moved      what the matcher says (AGLA, vote) or the noise (VCD) does changes the answer. It reaches the engine.
    matcher    an answer with the matcher service's own mask or scores. It can be had.
    objects    a caption, voted on by the vocabulary. Every process of the engine knows it.

Tokens in later steps, which depend on the caches of both branches, are left to the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from lvlm_guard.matching.asking import YES
from lvlm_guard.matching.claims import finder_of
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.serve.knobs import LEAST_BETA
from lvlm_guard.serve.launch.canary import CAPTION, Canary, CanaryError, Tokens

ZERO = 1e-4
"""Nats within which a log-probability is 0."""

NEAR = 0.05
"""Nats within which two are equal: rounding in half precision, far below what a wrong row makes."""

MOVED = 0.01
"""Nats that a mask or the noise must move one by, and four times what asking twice moves it."""

CUT = -100.0
"""Log-probability below which a token was cut."""

NO_CUT = 1e-9  # a beta that keeps all that can matter
WORDS = ("Yes", "yes", " yes", " Yes"), ("No", "no", " no", " No")


def check(canary: Canary, guards: Sequence[str], tokenizer: Callable[[], Any]) -> None:
    """Ask all questions.

    Args:
        canary: the server.
        guards: that it serves.
        tokenizer: gives the model's; asked for `vote` alone.

    Raises:
        CanaryError: a guard does not act; the message names the question.
    """
    for guard in guards:
        for name, question in QUESTIONS[guard].items():
            try:
                question(canary, guard, tokenizer)
            except CanaryError as error:
                raise CanaryError(f"{guard} does not guard ({name}): {error}") from error


def _one_token(canary: Canary, guard: str, _: Any) -> None:
    off = _OFF[guard]
    for step in canary.ask(guard, {**off, "beta": 1.0}, 1.0, tokens=4):
        if abs(best := max(step.values())) > ZERO:
            raise CanaryError(f"with beta 1 one token alone is left, but its log-probability is {best:.4f}, not 0.")


def _as_plain(canary: Canary, guard: str, _: Any) -> None:
    beta = LEAST_BETA if guard == "vote" else NO_CUT
    plain = canary.ask(None)[0]
    guarded = canary.ask(guard, {**_OFF[guard], "beta": beta}, 1.0)[0]
    top = max(plain, key=lambda token: plain[token])
    # clear of the cut, and of the floor that log-probabilities have in JSON
    kept = {token: value for token, value in plain.items() if value - plain[top] > max(math.log(beta) + 1, -30)}
    _check_same(kept, guarded, top if guard == "vote" else None)


def _masked(canary: Canary, guard: str, _: Any) -> None:
    knobs = {"alpha": 2.0, "beta": NO_CUT}
    all_kept, again, nothing = (canary.ask(guard, knobs, share)[0] for share in (1.0, 1.0, 0.0))
    _check_moved(all_kept, again, nothing, "a mask that keeps all of the picture and one that keeps nothing")


def _noisy(canary: Canary, guard: str, _: Any) -> None:
    plain, again = (canary.ask(guard, {"alpha": 0.0, "beta": NO_CUT}, 1.0)[0] for _ in range(2))
    noisy = canary.ask(guard, {"alpha": 1.0, "beta": NO_CUT}, 1.0)[0]
    _check_moved(plain, again, noisy, "no weight and a weight of 1 on the picture with noise")


def _cut_between(canary: Canary, guard: str, _: Any) -> None:
    plain = sorted(canary.ask(None)[0].items(), key=lambda item: -item[1])
    gaps = [high[1] - low[1] for high, low in pairwise(plain)]
    # the widest gap below the best token in which a beta can stand
    last = max(range(len(gaps)), key=lambda i: gaps[i] if plain[i + 1][1] - plain[0][1] > -30 else -1.0)
    beta = math.exp(plain[last][1] - plain[0][1] - min(gaps[last] / 2, 1.0))
    kept = dict(plain[: last + 1])
    guarded = canary.ask(guard, {"beta": beta})[0]
    over = [token for token, value in guarded.items() if token not in kept and value > CUT]
    if over:
        raise CanaryError(f"with beta {beta:.3g} it keeps {len(over)} tokens that are less likely than that.")
    if abs(whole := math.fsum(math.exp(guarded.get(token, -math.inf)) for token in kept) - 1) > ZERO:
        raise CanaryError(
            f"the tokens that beta {beta:.3g} keeps have probabilities of {1 + whole:.4f} together, not 1."
        )
    _check_same(kept, guarded, plain[0][0])


def _voted(canary: Canary, guard: str, tokenizer: Callable[[], Any]) -> None:
    yes, no = _yes_and_no(tokenizer())
    both: dict[str, Any] = {"allowed_token_ids": [yes, no]}
    plain = canary.ask(None, **both)[0]
    half = max(-100.0, min(100.0, (plain[no] - plain[yes]) / 2))
    even = {**both, "logit_bias": {str(yes): half, str(no): -half}}
    knobs = {"lam": 1.0, "beta": LEAST_BETA}
    for_it, against = (canary.ask(guard, knobs, p, **even)[0] for p in (0.999, 0.001))
    moved = (for_it[yes] - for_it[no]) - (against[yes] - against[no])
    wanted = log_odds(0.999) - log_odds(0.001)
    if abs(moved - wanted) > 2 * NEAR:
        raise CanaryError(f"scores of .999 and .001 move yes against no by {moved:.3f} nats instead of {wanted:.3f}.")


def _by_matcher(canary: Canary, guard: str, _: Any) -> None:
    canary.ask(guard)


def _free_text(canary: Canary, guard: str, _: Any) -> None:
    """Reach the vocabulary in every process of the engine: an answer that is voted on object by object."""
    canary.ask(guard, tokens=4, text=CAPTION)


_OFF: dict[str, dict[str, float]] = {"agla": {"alpha": 0.0}, "vcd": {"alpha": 0.0}, "apc": {}, "vote": {"lam": 0.0}}
"""Knobs under which a guard weighs nothing."""

Question = Callable[[Canary, str, Callable[[], Any]], None]

QUESTIONS: dict[str, dict[str, Question]] = {
    "agla": {"cut": _one_token, "plain": _as_plain, "moved": _masked, "matcher": _by_matcher},
    "vcd": {"cut": _one_token, "plain": _as_plain, "moved": _noisy},
    "apc": {"cut": _one_token, "plain": _as_plain, "moved": _cut_between},
    "vote": {"cut": _one_token, "plain": _as_plain, "moved": _voted, "matcher": _by_matcher, "objects": _free_text},
}


def _check_same(wanted: Tokens, found: Tokens, top: int | None) -> None:
    """Raise where log-probabilities differ; those relative to a token's, where other tokens were cut."""
    for token, value in wanted.items():
        seen = found.get(token, -math.inf)
        if top is not None:
            seen, value = seen - found.get(top, -math.inf), value - wanted[top]
        if not abs(seen - value) <= NEAR:
            raise CanaryError(
                f"with no weight it is plain decoding, but the log-probability of token {token} is {seen:.4f}, and "
                f"{value:.4f} in the plain model."
            )


def _check_moved(first: Tokens, again: Tokens, other: Tokens, what: str) -> None:
    noise, moved = _apart(first, again), _apart(first, other)
    if moved <= max(MOVED, 4 * noise):
        raise CanaryError(
            f"{what} give the same log-probabilities ({moved:.4f} apart, and {noise:.4f} when asked twice)."
        )


def _apart(first: Tokens, other: Tokens) -> float:
    """Return by how much log-probabilities differ at most; infinity where no token is in both."""
    return max((abs(value - other[token]) for token, value in first.items() if token in other), default=math.inf)


def _yes_and_no(tokenizer: Any) -> tuple[int, int]:
    """Return a token that starts "yes", as `vote` finds them, and one that starts "no"."""
    finder = finder_of(tokenizer, YES)
    first = [[ids[0] for word in words if (ids := tokenizer.encode(word, add_special_tokens=False))] for words in WORDS]
    unknown = tokenizer.unk_token_id
    reached = finder.reachable((), sorted({token for tokens in first for token in tokens}))
    yes = next((token for token in first[0] if token in reached and token != unknown), None)
    no = next((token for token in first[1] if token not in reached and token != unknown), None)
    if yes is None or no is None:
        raise CanaryError("no token of the model's tokenizer starts yes or no, so that nobody can vote on them.")
    return yes, no
