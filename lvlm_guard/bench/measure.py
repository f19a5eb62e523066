"""Arms, workloads, and the interleaved measurement. See the package for how it is measured."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.bench.clock import clocked
from lvlm_guard.bench.intervals import Interval, figure, median_interval, median_ratio
from lvlm_guard.bench.memory import peak_meter
from lvlm_guard.bench.peers import peer
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.engine.method import Method
    from lvlm_guard.engine.session import Execution

COUNTED = ("global_forwards", "local_forwards", "local_tokens", "masks")
SHARES = ("matcher_share", "reading_share")
ASKED = ("__call__", "support", "support_pairs", "similarity")
"""A matcher's methods whose time is told."""
COUNTED_CALLS = 96  # most untimed calls of which these are the means
Row = dict[str, Any]
Times = NDArray[Any]  # [..., 3]: seconds of generate(), those with the processor, new tokens
T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """What is asked, again and again.

    Args:
        task: "caption" or "question".
        batch: requests of one call.
        calls: calls of one block.
        prompts: call number -> its `batch` prompts.
        pictures: call number -> its `batch` pictures, RGB.
        new_tokens: longest answer.
    """

    task: str
    batch: int
    calls: int
    prompts: Callable[[int], list[str]]
    pictures: Callable[[int], list[Image.Image]]
    new_tokens: int


@dataclass(frozen=True)
class Arm:
    """One way to answer; `method` None is plain `generate()`, or another package's `peer` of that name."""

    name: str
    execution: Execution = "auto"
    method: Method | None = None
    peer: str = ""


def turning(arms: Sequence[T], calls: int) -> Iterator[Sequence[T]]:
    """Yield the order of the arms for each call: forwards, backwards, forwards, ..., each time from another start."""
    for call in range(calls):
        start = (call // 2) % len(arms)
        order = [*arms[start:], *arms[:start]]
        yield order if call % 2 == 0 else order[::-1]


def stamped(image: Image.Image, number: int) -> Image.Image:
    """Return the picture with a number written into the low bits of its corner pixels: another content, the same sight.

    Each of the first pixels' channels takes two bits.
    """
    pixels = np.array(image)
    flat = pixels.reshape(-1)[: min(12, pixels.size)]
    for place in range(len(flat)):
        flat[place] = (int(flat[place]) & ~3) | ((number >> (2 * place)) & 3)
    return Image.fromarray(pixels)


def arms_of(methods: Sequence[Method], executions: Sequence[Execution]) -> list[Arm]:
    """Return plain, and each method in each execution that is another way to run it.

    A method without branches runs in one way; one that leaves its branch idle by design is not batched.

    Raises:
        KnobError: no such execution.
    """
    from lvlm_guard.engine.session import EXECUTIONS

    arms = [Arm("greedy")]
    for method in methods:
        for execution in executions:
            if execution not in EXECUTIONS:
                raise KnobError(f"execution is {execution!r}: give 'auto', 'lazy' or 'batched'.")
            alone = not method.branches()
            if execution != "auto" and (alone or execution not in method.executions):
                continue
            arms.append(Arm(method.name, execution, method))
    return arms


@dataclass
class Bench:
    """Measures arms on one model.

    Args:
        model: not guarded; each guarded arm has a copy of its own, which shares the weights.
        processor: likewise.
        name: of the model, in the rows.
        blocks: repetitions that count, per workload; one more goes before.
        tick: told of each block done.
    """

    model: Any
    processor: Any
    name: str
    _: KW_ONLY
    blocks: int = 12
    tick: Callable[[int], object] = lambda count: None
    raised: dict[str, str] = field(default_factory=dict, init=False)
    """What peers raised, by their arm's name; they are not measured."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False)
    _guarded: dict[Arm, tuple[Any, Any]] = field(default_factory=dict, init=False)

    def run(self, workloads: Sequence[Workload], arms: Sequence[Arm]) -> list[Row]:
        """Return the rows of all workloads; they have "batch" and "execution" beside the long form's keys.

        The first arm must be the plain one. A peer that raises on a workload is left out of it, see `raised`.
        """
        # before any guard, which brings the matcher into memory for good
        plain_peaks = [self._peak(workload, arms[0]) for workload in workloads]
        rows: list[Row] = []
        for workload, plain_peak in zip(workloads, plain_peaks, strict=True):
            able = [arm for arm in arms if not arm.peer or self._answers(workload, arm)]
            peaks = [plain_peak, *(self._peak(workload, arm) for arm in able[1:])]
            timed = self._time(workload, able)
            for arm, peak in zip(able, peaks, strict=True):
                found = self._told(workload, arm, timed[arm], timed[arms[0]])
                rows += self._rows(workload, arm, found | {"peak_memory_mib": (peak, None, None)})
        return rows

    def _answers(self, workload: Workload, arm: Arm) -> bool:
        """Return whether a peer can answer at all; what it raises is any error, and is kept in `raised`."""
        try:
            self._call(workload, arm, 0)
        except Exception as error:
            self.raised[arm.name] = f"{type(error).__name__}: {error}"
            return False
        return True

    def _told(self, workload: Workload, arm: Arm, mine: Times, plain: Times) -> dict[str, Interval]:
        """Return an arm's figures by metric, from its blocks' times and the plain arm's, [blocks, 3]."""
        (spent, requests, tokens), (plainly, plain_requests, plain_tokens) = mine.T, plain.T
        found: dict[str, Interval] = {}
        if arm.method is not None:
            found["time_ratio"] = median_ratio(spent, plainly)
            found["token_time_ratio"] = median_ratio(spent / tokens, plainly / plain_tokens)
        if arm.method is not None or arm.peer:
            found["request_ratio"] = median_ratio(requests, plain_requests)
        found["tokens_per_s"] = median_interval(tokens / spent)
        found["seconds_per_call"] = median_interval(spent / workload.calls)
        return found | (self._counts(workload, arm) if arm.method is not None else {})

    def _rows(self, workload: Workload, arm: Arm, found: Mapping[str, Interval]) -> Iterator[Row]:
        calls = self.blocks * workload.calls
        execution = arm.execution if arm.method is not None else "peer" if arm.peer else "plain"
        for metric, interval in found.items():
            n = min(calls, COUNTED_CALLS) if metric in (*COUNTED, *SHARES) else calls * workload.batch
            head = {"model": self.name, "method": arm.name, "task": workload.task}
            yield head | figure(metric, interval) | {"n": n, "batch": workload.batch, "execution": execution}

    def _time(self, workload: Workload, arms: Sequence[Arm]) -> dict[Arm, Times]:
        """Return the times of each arm, summed over each block: [blocks, 3]."""
        timed = {arm: np.zeros((self.blocks, 3)) for arm in arms}
        for block in range(-1, self.blocks):  # the first warms up
            for offset, order in enumerate(turning(arms, workload.calls)):
                call = (block % self.blocks) * workload.calls + offset
                # parity goes on over blocks of an odd number of calls
                for arm in order[::-1] if workload.calls % 2 and block % 2 else order:
                    spent = self._call(workload, arm, call)
                    if block >= 0:
                        timed[arm][block] += spent
            self.tick(1)
        return timed

    def _call(self, workload: Workload, arm: Arm, call: int) -> tuple[float, float, int]:
        """Answer once; returns seconds of generate(), with the processor, and the number of new tokens.

        A peer answers with text, so that its decoding can't be told from its request.
        """
        model, processor = self._pair(arm)
        pictures = [stamped(picture, next(self._numbers)) for picture in workload.pictures(call)]
        prompts = workload.prompts(call)
        if arm.peer:
            answer = peer(arm.peer, model, processor, workload.new_tokens)
            began = self._now()
            texts = answer(pictures, prompts)
            seconds = self._now() - began
            ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return seconds, seconds, sum(len(one) + 1 for one in ids)  # and the end of the text
        began = self._now()
        inputs = self._inputs(processor, pictures, prompts)
        ready = self._now()
        sequences = model.generate(**inputs, max_new_tokens=workload.new_tokens, do_sample=False)
        end = self._now()
        return end - ready, end - began, self._tokens(sequences, inputs["input_ids"].shape[1])

    def _counts(self, workload: Workload, arm: Arm) -> dict[str, Interval]:
        """Return the mean counts of a call, and which shares of its time go where, from calls of their own."""
        from lvlm_guard.engine.reading import Reader, Reading
        from lvlm_guard.matching import load_matcher

        model, processor = self._pair(arm)
        calls, spent = min(self.blocks * workload.calls, COUNTED_CALLS), 0.0
        sums = dict.fromkeys(COUNTED, 0)
        method: Any = arm.method.assembling if arm.method else None
        asks = hasattr(method, "matcher")
        kind = type(load_matcher(method.matcher, model=self.model)) if asks else object
        with clocked(kind, ASKED if asks else (), self._now) as matcher:

            def beside() -> float:
                return self._now() - matcher.seconds

            with clocked(Reader, ("opened",), beside) as opened, clocked(Reading, ("caught_up",), beside) as read:
                for call in range(calls):
                    pictures = [stamped(picture, next(self._numbers)) for picture in workload.pictures(call)]
                    inputs = self._inputs(processor, pictures, workload.prompts(call))
                    asked = {"max_new_tokens": workload.new_tokens, "do_sample": False, "return_dict_in_generate": True}
                    began = self._now()
                    guarded = model.generate(**inputs, **asked).guard
                    spent += self._now() - began
                    sums = {name: total + getattr(guarded, name) for name, total in sums.items()}
        shares = {"matcher_share": matcher.seconds / spent, "reading_share": (opened.seconds + read.seconds) / spent}
        means = {name: total / calls for name, total in sums.items()}
        return {name: (value, None, None) for name, value in (means | shares).items()}

    def _peak(self, workload: Workload, arm: Arm) -> float:
        """Return the process's peak memory (the device's on CUDA) over one call, in MiB."""
        self._call(workload, arm, 0)  # loads what is loaded once
        read = peak_meter(self.model.device)
        self._call(workload, arm, 0)
        return read()

    def _pair(self, arm: Arm) -> tuple[Any, Any]:
        """Return the model and the processor of an arm: as they came, or copies that share their weights, guarded once.

        A user guards once too: to guard before each call would empty what Python keeps of a class, and time that.
        """
        from lvlm_guard.api import guard

        if arm.method is None:
            return self.model, self.processor
        if arm not in self._guarded:
            copies = copy.copy(self.model), copy.copy(self.processor)
            self._guarded[arm] = guard(*copies, arm.method, execution=arm.execution)
        return self._guarded[arm]

    def _inputs(self, processor: Any, pictures: list[Image.Image], prompts: list[str]) -> Any:
        from lvlm_guard.pretrained import ask

        inputs = ask(processor, [[picture] for picture in pictures], prompts)
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _tokens(self, sequences: Any, prompt: int) -> int:
        """Count the new tokens up to each row's end of text, the end included."""
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        rows = sequences[:, prompt:].tolist()
        return sum(next((n for n, token in enumerate(row, 1) if token in stops), len(row)) for row in rows)

    def _now(self) -> float:
        """Return the clock once the device has done what it was given."""
        import torch

        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()
