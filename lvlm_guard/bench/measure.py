"""Arms, workloads, and the interleaved measurement. See the package for how it is measured."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from lvlm_guard.bench.intervals import median_interval, median_ratio
from lvlm_guard.bench.memory import peak_meter
from lvlm_guard.bench.peers import peer
from lvlm_guard.errors import KnobError

if TYPE_CHECKING:
    from lvlm_guard.engine.method import Method
    from lvlm_guard.engine.session import Execution

Row = dict[str, Any]
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


@dataclass
class Timed:
    """Seconds of one arm, summed over each block, and the tokens of its answers."""

    generate: list[float] = field(default_factory=list)
    request: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


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
    arms = [Arm("greedy")]
    for method in methods:
        for execution in executions:
            if execution not in ("auto", "lazy", "batched"):
                raise KnobError(f"execution is {execution!r}: give 'auto', 'lazy' or 'batched'.")
            alone = not method.branches()
            if execution != "auto" and (alone or execution not in method.executions):
                continue
            arms.append(Arm(method.name, execution, method))
    return arms


class Bench:
    """Measures arms on one model.

    Args:
        model: not guarded; each guarded arm has a copy of its own, which shares the weights.
        processor: likewise.
        name: of the model, in the rows.
        blocks: repetitions that count, per workload.
        warm: repetitions before them that do not.
        tick: told of each block done.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        *,
        blocks: int = 12,
        warm: int = 1,
        tick: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.blocks = blocks
        self.warm = warm
        self.tick = tick
        self._numbers = itertools.count(1)
        self._guarded: dict[Arm, tuple[Any, Any]] = {}
        self.raised: dict[str, str] = {}
        """What peers raised, by their arm's name; they are not measured."""

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
                rows += self._rows(workload, arm, timed[arm], timed[arms[0]])
                rows.append(self._row(workload, arm, "peak_memory_mib", peak))
        return rows

    def _answers(self, workload: Workload, arm: Arm) -> bool:
        """Return whether a peer can answer at all; what it raises is any error, and is kept in `raised`."""
        try:
            self._call(workload, arm, 0)
        except Exception as error:
            self.raised[arm.name] = f"{type(error).__name__}: {error}"
            return False
        return True

    def _rows(self, workload: Workload, arm: Arm, mine: Timed, plain: Timed) -> list[Row]:
        rates = np.array(mine.tokens) / np.array(mine.generate)
        each = np.array(mine.generate) / workload.calls
        rows = [
            self._row(workload, arm, "tokens_per_s", *median_interval(rates)),
            self._row(workload, arm, "seconds_per_call", *median_interval(each)),
        ]
        if arm.method is None and not arm.peer:
            return rows
        rows.insert(0, self._row(workload, arm, "request_ratio", *median_ratio(mine.request, plain.request)))
        if arm.peer:
            return rows
        ratio = self._row(workload, arm, "time_ratio", *median_ratio(mine.generate, plain.generate))
        spent = (np.array(each.generate) / np.array(each.tokens) for each in (mine, plain))
        ratio_of_a_token = self._row(workload, arm, "token_time_ratio", *median_ratio(*spent))
        return [ratio, ratio_of_a_token, *rows, *self._counts(workload, arm)]

    def _row(
        self,
        workload: Workload,
        arm: Arm,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
    ) -> Row:
        return {
            "model": self.name,
            "method": arm.name,
            "task": workload.task,
            "metric": metric,
            "value": value,
            "low": low,
            "high": high,
            "n": self.blocks * workload.calls * workload.batch,
            "batch": workload.batch,
            "execution": arm.execution if arm.method is not None else "peer" if arm.peer else "plain",
        }

    def _time(self, workload: Workload, arms: Sequence[Arm]) -> dict[Arm, Timed]:
        timed = {arm: Timed() for arm in arms}
        for block in range(-self.warm, self.blocks):
            sums = dict.fromkeys(arms, (0.0, 0.0, 0))
            for offset, order in enumerate(turning(arms, workload.calls)):
                call = (block % self.blocks) * workload.calls + offset
                # parity goes on over blocks of an odd number of calls
                turned = order[::-1] if workload.calls % 2 and block % 2 else order
                for arm in turned:
                    seconds, request, tokens = self._call(workload, arm, call)
                    before = sums[arm]
                    sums[arm] = (before[0] + seconds, before[1] + request, before[2] + tokens)
            if block >= 0:
                for arm, (seconds, request, tokens) in sums.items():
                    timed[arm].generate.append(seconds)
                    timed[arm].request.append(request)
                    timed[arm].tokens.append(tokens)
            self.tick(1)
        return timed

    def _call(self, workload: Workload, arm: Arm, call: int) -> tuple[float, float, int]:
        """Answer once; returns seconds of generate(), with the processor, and the number of new tokens."""
        model, processor = self._pair(arm)
        pictures = [stamped(picture, next(self._numbers)) for picture in workload.pictures(call)]
        prompts = workload.prompts(call)
        if arm.peer:
            return self._asked_of_peer(workload, arm, pictures, prompts)
        self._wait()
        began = time.perf_counter()
        inputs = self._inputs(processor, pictures, prompts)
        self._wait()
        ready = time.perf_counter()
        sequences = model.generate(**inputs, max_new_tokens=workload.new_tokens, do_sample=False)
        self._wait()
        end = time.perf_counter()
        return end - ready, end - began, self._tokens(sequences, inputs["input_ids"].shape[1])

    def _asked_of_peer(
        self, workload: Workload, arm: Arm, pictures: list[Image.Image], prompts: list[str]
    ) -> tuple[float, float, int]:
        """Answer once through another package, whose request can't be told from its decoding."""
        answer = peer(arm.peer, self.model, self.processor, workload.new_tokens)
        self._wait()
        began = time.perf_counter()
        texts = answer(pictures, prompts)
        self._wait()
        seconds = time.perf_counter() - began
        tokens = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return seconds, seconds, sum(len(one) + 1 for one in tokens)  # and the end of the text

    def _counts(self, workload: Workload, arm: Arm) -> list[Row]:
        """Return the mean counts of a call, from untimed calls."""
        model, processor = self._pair(arm)
        names = ("global_forwards", "local_forwards", "local_tokens", "masks")
        sums = dict.fromkeys(names, 0)
        calls = min(self.blocks * workload.calls, 96)
        for call in range(calls):
            inputs = self._inputs(processor, workload.pictures(call), workload.prompts(call))
            output = model.generate(
                **inputs, max_new_tokens=workload.new_tokens, do_sample=False, return_dict_in_generate=True
            )
            for name in names:
                sums[name] += getattr(output.guard, name)
        return [self._row(workload, arm, name, total / calls) | {"n": calls} for name, total in sums.items()]

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
        count = 0
        for row in sequences[:, prompt:].tolist():
            count += next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
        return count

    def _wait(self) -> None:
        import torch

        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
