"""How many tokens the guards chose, and how many of them greedy decoding of the plain logits would not have chosen.

    lvlm_guard_tokens_total{guard="vote"}              tokens drawn from assembled logits
    lvlm_guard_tokens_overruled_total{guard="vote"}    of these, where the plain logits prefer another token

The processors of logits count in the engine's process, and vLLM's /metrics is answered by the API's. With
`PROMETHEUS_MULTIPROC_DIR` set to an empty folder before either starts, prometheus_client adds up what both wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from prometheus_client import REGISTRY, CollectorRegistry, Counter

if TYPE_CHECKING:
    from torch import Tensor

EVERY = 1.0
"""Seconds between a token and its showing; a GPU is waited for no oftener, and not by the thread that feeds it."""


@cache
def counters(registry: CollectorRegistry = REGISTRY) -> dict[str, Counter]:
    """Return the counters in a registry, which holds one set of them."""
    also = "Of these, those where the plain logits prefer another token than the guard's do."
    names = {"tokens": "Tokens drawn under a guard.", "tokens_overruled": also}
    return {name: Counter(f"lvlm_guard_{name}", does, ["guard"], registry=registry) for name, does in names.items()}


class Overruled:
    """Counts for one processor of logits. Ranks of a tensor-parallel engine see the same rows: let one count."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters = counters(registry)
        self._held: list[tuple[str, list[tuple[list[int], int]], Tensor | None]] = []
        self._tokens: dict[str, int] = {}
        self._overruled: dict[str, Tensor] = {}
        self._told: dict[tuple[str, str], int] = {}
        self._due = False
        self._telling = threading.Lock()

    def hold(self, guard: str, answers: Sequence[list[int]], flags: Tensor | None) -> None:
        """Remember rows of a step until it is known which of them a token was drawn from.

        A row of a prompt that is read in chunks has logits too, and what is drawn from them is thrown away.

        Args:
            guard, flags: as of `add`.
            answers: each row's growing list of tokens, the runner's own.
        """
        self._held.append((guard, [(answer, len(answer)) for answer in answers], flags))

    def settle(self) -> None:
        """Count what was held and has since grown."""
        held, self._held = self._held, []
        for guard, answers, flags in held:
            self.add(guard, [len(answer) > length for answer, length in answers], flags)

    def add(self, guard: str, drawn: Sequence[bool], flags: Tensor | None) -> None:
        """Count the rows of a step.

        Args:
            guard: the method's name.
            drawn: whether a token is drawn from a row.
            flags: where assembled and plain logits prefer different tokens, [rows] bool; None for nowhere.
        """
        tokens = sum(drawn)
        if not tokens:
            return
        if flags is not None:
            with torch.inference_mode():
                if tokens < len(drawn):
                    flags = flags & torch.tensor(drawn, device=flags.device)
                if guard not in self._overruled:
                    self._overruled[guard] = torch.zeros((), dtype=torch.long, device=flags.device)
                self._overruled[guard] += flags.sum()
        self._tokens[guard] = self._tokens.get(guard, 0) + tokens
        if not self._due:
            self._due = True
            timer = threading.Timer(EVERY, self.tell)
            timer.daemon = True
            timer.start()

    def tell(self) -> None:
        """Show what was counted; waits for the device."""
        with self._telling:
            self._due = False
            for guard, tokens in list(self._tokens.items()):
                overruled = self._overruled.get(guard)
                totals = {"tokens_overruled": 0 if overruled is None else int(overruled), "tokens": tokens}
                for name, total in totals.items():
                    self._counters[name].labels(guard).inc(total - self._told.get((name, guard), 0))
                    self._told[name, guard] = total


def preferred_others(assembled: Tensor, plain: Tensor) -> Tensor:
    """Return where two sets of logits [rows, V] prefer different tokens, [rows] bool."""
    return assembled.argmax(-1) != plain.argmax(-1)


def drawn_of(states: Any, ctx: Any, rows: Sequence[int]) -> list[bool]:
    """Return whether a token is drawn from each of some rows of vLLM's V2 runner.

    Args:
        states: the processor's `LogitsProcRequestState`.
        ctx: the step's `LogitsContext`.
        rows: rows of logits.
    """
    given, read = states.prefill_len.np, ctx.seq_lens_upper_bound_np
    return [bool(read[row] >= given[ctx.idx_mapping_np[row]]) for row in rows]


def engine_counts() -> Overruled | None:
    """Return a counter for a processor in an engine of vLLM, None where another rank counts the same rows."""
    from vllm.distributed import parallel_state

    parallel = parallel_state.model_parallel_is_initialized()
    return None if parallel and parallel_state.get_tensor_model_parallel_rank() else Overruled()
