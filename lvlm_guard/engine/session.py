"""One guarded `generate()` call: branch, assemble, record - step by step, inside the model's call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lvlm_guard.engine import rows as blocks
from lvlm_guard.engine.active import within
from lvlm_guard.engine.assembly import upcast
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.hiding import refusal, shareable
from lvlm_guard.engine.lagging import Lagging, records
from lvlm_guard.engine.method import Method, Step
from lvlm_guard.engine.reading import Prepared, Reader, Reading, encodes_first
from lvlm_guard.engine.steering import Decoder, Pass
from lvlm_guard.engine.trace import Recorder, answers_of
from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.engine.trace import GuardTrace

Execution = Literal["auto", "lazy", "batched"]
EXECUTIONS = ("auto", "lazy", "batched")
FEW = 3  # few requests want a branch: no more than one in so many
EARLY = 1  # tokens within which an answer that has one undecided token has it


class Session:
    """The state of one guarded call; made by the guarded `generate()`, found by the guarded `__call__`.

    Args:
        call: what the call is about.
        method: the decoding method with its knobs.
        execution: "auto", "lazy" or "batched".
        plain: the class below the guard, whose methods are called for every branch.
        prompt: prompt tokens, [B, T].
        keep_steps: whether to record every token for `GuardTrace.steps`.
    """

    def __init__(
        self, call: Call, method: Method, execution: Execution, plain: type[Any], prompt: Tensor, keep_steps: bool
    ) -> None:
        if execution not in EXECUTIONS:
            raise KnobError(f"execution is {execution!r}: give 'auto', 'lazy' or 'batched'.")
        self.call = call
        self.method = method
        self.prompt = prompt
        self._reader = Reader(call, plain, prompt)
        self.trace: GuardTrace = call.trace
        self.branches = method.branches() if any(call.has_picture) else ()
        self.prepared: Prepared | None = None
        self.execution: str = execution
        self._asked = execution
        self.eos: Tensor | None = None
        self._fill: int | None = None  # what beam search fills its shorter answers up with
        self._cached = 0  # tokens that the caller's cache holds already
        self._cache: Any = None  # the cache in blocks, when batched
        self._global: Any = None  # generate()'s cache
        self._longest = 0
        self._rows_of: dict[tuple[int, int], list[int]] = {}
        self._may_join: Callable[[], bool] = lambda: False
        self._eager = call.family.proof.way is None  # the branches run from the first step on, wanted or not
        self._idle = True  # no branch has run yet
        self._lagging = [Lagging(call.family.proof.crops) for _ in self.branches]
        self._readings: list[Reading] = []
        self._steers = method.steers and any(call.has_picture)
        self._layers = method.layers(call) if any(call.has_picture) else ()
        self._lens_is_right = not self._layers
        self._hidden: dict[int, Tensor] = {}  # what the layers gave in this step
        self._whole_prefill: Prepared | None = None
        self._recorder = Recorder([branch.name for branch in self.branches], keep_steps)

    # --- what generate() tells

    def starts(self, generation_config: Any, arguments: dict[str, Any]) -> None:
        """Learn the cache and the end-of-text tokens; decide how the branches run.

        Raises:
            UnsupportedCallError: a cache from an earlier call comes without the tokens that it holds.
        """
        self.eos = generation_config._eos_token_tensor
        if generation_config.num_beams > 1:
            pad = generation_config._pad_token_tensor  # as `_beam_search` of transformers chooses
            self._fill = -1 if self.eos is None else int(pad or self.eos[0])
        cache = arguments.get(blocks.CACHE)
        if cache is None and any(isinstance(value, Cache) for value in arguments.values()):
            raise UnsupportedCallError(
                f"This release of transformers keeps its cache under another name than {blocks.CACHE!r}, which this "
                "release of lvlm-guard does not know. Upgrade lvlm-guard, or install an older transformers."
            )
        self._cached = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        if self._cached and self.prompt.shape[1] <= self._cached:
            raise UnsupportedCallError(
                f"past_key_values holds {self._cached} tokens but input_ids only {self.prompt.shape[1]}: the other "
                "branches must read the whole conversation once. Pass the whole sequence as input_ids (transformers "
                "skips what the cache holds)."
            )
        if generation_config.prefill_chunk_size is not None and self.branches and not encodes_first(self.call.model):
            raise UnsupportedCallError(
                "prefill_chunk_size: this release of transformers reads a prompt in chunks without looking at its "
                "picture, for any answer, guarded or not. Leave prefill_chunk_size out, or upgrade transformers."
            )
        if (self._steers or self._layers) and generation_config.prefill_chunk_size is not None:
            raise UnsupportedCallError(
                f"prefill_chunk_size: {self.method.name} acts inside the model's layers, on the prompt as a whole. "
                "Leave prefill_chunk_size out, or use a method that assembles logits, such as 'agla'."
            )
        if (self._steers or self._layers) and getattr(cache, "is_compileable", False):
            raise UnsupportedCallError(
                f"{self.method.name} acts inside the model's layers, which a compiled call with a "
                f"{type(cache).__name__} does not show. Leave cache_implementation out, or use a method that assembles "
                "logits, such as 'agla'."
            )
        if self._cached and any(branch.prompt for branch in self.branches):
            raise UnsupportedCallError(
                f"past_key_values: {self.method.name} reads a prompt of its own, which the first turn's inputs don't "
                "tell of a later turn. Pass the whole conversation through the processor, without past_key_values."
            )
        if self._cached and not all(branch.hides for branch in self.branches):
            self._reader.from_the_start(arguments)
        self.execution = self._choose(generation_config, cache)
        self.trace.execution = self._asked if self._eager and self._asked == "batched" else self.execution
        if self.execution == "batched" and cache is not None:
            self._cache = blocks.in_blocks(cache, 1 + len(self.branches))
        self._global = cache
        self._longest = generation_config.max_length
        for branch in self.branches:
            why = shareable(cache, self._longest) if branch.hides else None
            if why is not None:
                raise refusal(branch.name, why)

    def _choose(self, config: Any, cache: Any) -> str:
        if not self.branches:
            return "single"
        joins = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
        if self.execution == "auto":
            # stacked later, if at all: a DynamicCache grows, so that the lagging branches' rows can be appended to it
            if joins and not (config.output_hidden_states or config.output_attentions):
                self._may_join = functools.cache(lambda: self._unstackable(config, cache) is None)
            return "lazy"
        if self.execution == "lazy":
            return "lazy"
        impossible = self._unstackable(config, cache)
        if impossible:
            self.trace.note(f"Ran lazy instead of batched: {impossible}.")
            return "lazy"
        if joins or cache is None:
            self._eager = True  # each branch reads the prompt by itself, in shapes of its own; then their rows join
            self._may_join = lambda: joins
            return "lazy"
        if any(branch.hides for branch in self.branches):
            kind = type(cache).__name__
            self.trace.note(f"Ran lazy instead of batched: a branch that hides can't be stacked on a {kind}.")
            return "lazy"
        return "batched"

    def _unstackable(self, config: Any, cache: Any) -> str | None:
        """Return why branches can't be stacked, or None."""
        if "batched" not in self.method.executions:
            return f"{self.method.name} leaves its branch idle most of the time"
        if self._steers or self._layers:
            return f"{self.method.name} acts inside the global branch alone"
        if not all(branch.stacks for branch in self.branches):
            return f"{self.method.name} reads a prompt of its own, or steers its branch"
        if self._cached:
            return "past_key_values holds the global branch alone"
        if not self.call.family.proof.stacks:
            return f"a {type(self.call.model).__name__} was not proven to stack its branches"
        if not blocks.stackable(cache, self.call.model.config):
            return f"a {type(cache).__name__} can't be stacked"
        return "the prompt is read in chunks" if config.prefill_chunk_size is not None else None

    def prepares(self, ids: Tensor, arguments: dict[str, Any]) -> None:
        """Learn the rows of the next model call, [R, T], and generate()'s arguments for it."""
        self.prepared = Prepared(ids, arguments)

    def prefill_in_chunks(self, ids: Tensor, arguments: dict[str, Any], prefill: Callable[[], Any]) -> Any:
        """Run a chunked prefill with the global branch alone, then assemble its last logits."""
        self._whole_prefill = Prepared(ids, dict(arguments))
        try:
            outputs = prefill()
        finally:
            self.prepared, self._whole_prefill = self._whole_prefill, None
        outputs.logits = self._assembled(outputs.logits[:, -1:], None)
        return outputs

    # --- the model call

    def forward(self, run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Run all branches for one call of generate() and return the global one's output, logits assembled.

        Args:
            run: the plain model call (compiled where generate() compiles it).
            inputs: its keyword arguments for R rows.
        """
        if self.prepared is None:
            raise UnsupportedCallError(
                "generate() reached the model without prepare_inputs_for_generation(), so the guard can't know which "
                "rows this call is about. guidance_scale calls the model so, for a second reading of its own: leave it "
                "out. A wrapper around generate() may replace that step (PEFT's prompt learning does): guard the "
                "wrapped model's plain decoder. Or pass guard=False."
            )
        self.trace.global_forwards += 1

        def plain(inputs: dict[str, Any]) -> Any:
            with within(self.call.model, None):  # a compiled call that falls back to eager is the guarded one
                return run(**inputs)

        if self._whole_prefill is not None:
            return plain(inputs)
        if self.execution != "batched":
            if self._steers or self._layers:
                with self._acting(inputs):
                    outputs = plain(inputs)
            else:
                outputs = plain(inputs)
            outputs.logits = self._assembled(outputs.logits, None)
            return outputs
        return self._stacked(plain, inputs)

    @contextmanager
    def _acting(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Steer the global branch's call, and keep what the method reads of its layers."""
        assert self.prepared is not None
        rows, length = self.prepared.ids.shape
        done = length - inputs["input_ids"].shape[1]
        passed = self.prepared.passed(self.call, done, self.prompt.shape[1], self._requests(rows, 1))
        with ExitStack() as stack:
            if self._layers:
                stack.enter_context(self._tapped(self.call.decoder, passed))
            if self._steers:
                stack.enter_context(self.method.around(passed))
            yield

    def _tapped(self, decoder: Decoder, passed: Pass) -> AbstractContextManager[None]:
        layers = [
            *decoder.within(self._layers),
            len(decoder) - 1,
        ]  # the last one tells whether the head is as we read it

        held = self._hidden = {}

        def see(index: int, given: Tensor) -> None:
            held[layers[index]] = given[:, given.shape[1] - max(passed.count, 1) :]

        return decoder.tapped(layers, see)

    def _stacked(self, run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        assert self.prepared is not None
        rows, count = len(self.prepared.ids), 1 + len(self.branches)
        readings = self._opened(self.prepared)
        holes = [None if reading.hidden is None else reading.hidden.hides for reading in readings]
        outputs = run(blocks.stack(inputs, [reading.view for reading in readings], rows, holes))
        self.trace.local_tokens += (count - 1) * int(inputs["input_ids"].numel())
        logits = outputs.logits.split(rows)
        for key in ("hidden_states", "attentions", "image_hidden_states"):
            if outputs.get(key) is not None:
                outputs[key] = blocks.only_global(outputs[key], rows, count)
        outputs.logits = self._assembled(logits[0], logits[1:])
        return outputs

    def _assembled(self, logits: Tensor, others: tuple[Tensor, ...] | None) -> Tensor:
        """Assemble the positions that predict a token of the answer; logits [R, Q, V] -> [R, Q, V]."""
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        ids = prepared.ids
        length, answers = logits.shape[1], ids.shape[1] - self.prompt.shape[1] + 1
        if not any(self.call.has_picture):
            return logits
        if answers <= 0:
            raise _unseen(
                f"The model was called about rows of {ids.shape[1]} tokens, fewer than the prompt's "
                f"{self.prompt.shape[1]}, so the guard can't know where they go on."
            )
        count = min(length, answers)  # of the kept positions, those at or after the prompt's last token
        step = self._step(logits[:, length - count :], ids, answers)
        if not self._lens_is_right:
            self._check_lens(step)
        lagging = others is None and bool(self.branches)
        decided = self.method.decided(step) if lagging or self._recorder.keep else None
        guarded = self._guarded(step)
        ran = None
        if lagging:
            wanted = (~decided | self._eager) & self._matters(guarded, ids, count)  # type: ignore[operator]  # not None
            if bool(wanted.any()):
                others, ran = self._others(prepared, step, wanted, count)
        flat = None
        if others is not None and self.branches:
            flat = tuple(other[:, other.shape[1] - count :].flatten(0, 1) for other in others)
        assembled = self.method.assemble(step, flat)
        if guarded is not None:
            assembled = torch.where(guarded[:, None], assembled, step.logits)
        self._recorder.add(step, assembled, flat, decided, ran)
        assembled = assembled.view(len(ids), count, -1)
        if count == length:
            return assembled
        return torch.cat([logits[:, : length - count].to(assembled.dtype), assembled], dim=1)

    def _step(self, logits: Tensor, ids: Tensor, answers: int) -> Step:
        rows, count, _ = logits.shape
        prompt = self.prompt.shape[1]
        raw = logits.flatten(0, 1)
        written: list[list[int]] = ids[:, prompt:].tolist()

        def prefix(row: int) -> list[int]:
            return written[row // count][: answers - count + row % count]

        return Step(
            logits=upcast(raw),
            raw=raw,
            t=self._t(answers, rows, count, raw.device),
            request=self._requests(rows, count),
            prefix=prefix,
            call=self.call,
            hidden=self._hidden_states(count),
        )

    def _hidden_states(self, count: int) -> Callable[[int], Tensor]:
        """Return what gives a layer's output at the last `count` positions, [R, D]."""
        held = self._hidden

        def hidden(layer: int) -> Tensor:
            if layer not in held:
                raise KnobError(f"Step.hidden({layer}): layers() of {self.method.name} does not name this layer.")
            return held[layer][:, -count:].flatten(0, 1)

        return hidden

    def _check_lens(self, step: Step) -> None:
        """Refuse a model whose logits are no norm and head of its last layer: early layers can't be read by them."""
        decoder = self.call.decoder
        read, wide = decoder.lens(step.hidden(len(decoder) - 1)).to(step.logits), step.raw.dtype.itemsize > 2
        if not torch.allclose(
            read, step.logits, rtol=0, atol=(1e-3 if wide else 0.05) * float(step.logits.abs().max())
        ):
            raise UnsupportedModelError(
                f"{type(self.call.model).__name__} makes its logits otherwise than by a norm and a head over its last "
                f"layer, so {self.method.name} can't read its early layers. Use a method that assembles whole logits, "
                "such as 'agla'."
            )
        self._lens_is_right = True

    def _t(self, answers: int, rows: int, count: int, device: torch.device) -> Tensor:
        if count == 1:
            return torch.full((rows,), answers, device=device)
        return torch.arange(answers - count + 1, answers + 1, device=device).repeat(rows)

    def _requests(self, rows: int, count: int) -> list[int]:
        if (rows, count) not in self._rows_of:
            per_request = rows // len(self.prompt)
            self._rows_of[rows, count] = [row // count // per_request for row in range(rows * count)]
        return self._rows_of[rows, count]

    def _guarded(self, step: Step) -> Tensor | None:
        """Return which rows show a picture, [R] bool; None where all do."""
        if all(self.call.has_picture):
            return None
        return torch.tensor([self.call.has_picture[request] for request in step.request], device=step.logits.device)

    def _matters(self, guarded: Tensor | None, ids: Tensor, count: int) -> Tensor | bool:
        """Return which rows are guarded and have not ended their answer, [R] bool; True for all."""
        if self.eos is None or len(ids) == 1:
            return True if guarded is None else guarded
        ended = torch.isin(ids[:, self.prompt.shape[1] :], self.eos.to(ids.device)).any(-1).repeat_interleave(count)
        return ~ended if guarded is None else ~ended & guarded

    # --- the other branches

    def _opened(self, prepared: Prepared) -> list[Reading]:
        """Return how each branch reads the rows; made at the first step that asks."""
        if not self._readings:
            requests = list(range(len(self.prompt)))
            self._readings = [self._reader.opened(branch, self.call, requests, prepared) for branch in self.branches]
        return self._readings

    def _others(
        self, prepared: Prepared, step: Step, wanted: Tensor, needed: int
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the lagging branches for the rows that want them, [R] bool.

        Returns:
            Their last `needed` logits, [R / needed, needed, V] each, and for which rows they ran (None: all).
            The first time, where few requests want them, only those are matched, encoded and read, and
            nothing is kept: yes/no answers have one undecided token, their first, and mostly few rows of a batch have
            it. Where a later token is the first undecided one, more follow.
        """
        requests = sorted({step.request[row] for row in wanted.nonzero().flatten().tolist()})
        first, self._idle = self._idle and prepared.ids.shape[1] - self.prompt.shape[1] < EARLY, False
        if first and FEW * len(requests) <= len(self.prompt) and (part := self.call.only(requests)) is not None:
            return self._for_few(prepared, step, part, requests, needed)
        branches = zip(self._opened(prepared), self._lagging, strict=True)
        others = tuple(self._catch_up(reading, lagging, prepared, needed) for reading, lagging in branches)
        if prepared.ids.shape[1] + 1 < self._longest and self._may_join():
            self._join()
        return others, None

    def _for_few(
        self, prepared: Prepared, step: Step, part: Call, requests: list[int], needed: int
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the branches for some requests; the other rows are decided, so that their own logits stand in."""
        rows, reader = len(prepared.ids), self._reader
        expand = rows // len(self.prompt)
        chosen = torch.tensor([r * expand + k for r in requests for k in range(expand)], device=prepared.ids.device)
        few = Prepared(prepared.ids[chosen], blocks.only_rows(prepared.arguments, chosen, rows))
        others = []
        for branch in self.branches:
            reading, cache, done = reader.opened(branch, part, requests, few), reader.new_cache(), 0
            if reading.hidden is not None:
                reading.hidden.seed(self._global, cache, chosen)
                done = reading.hidden.shared
            logits = reader.read(reading, reading.rows(few), cache if few.uses_cache else None, done, needed)
            whole = step.raw.view(rows, needed, -1).clone()
            whole[chosen] = logits.to(whole.dtype)
            others.append(whole)
        ran = torch.zeros(rows, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)
        return tuple(others), ran.repeat_interleave(needed)

    def _catch_up(self, reading: Reading, lagging: Lagging, prepared: Prepared, needed: int) -> Tensor:
        """Run one lagging branch over all that it skipped; returns its last `needed` logits, [R, needed, V]."""
        seen = reading.rows(prepared)
        if not prepared.uses_cache:
            return self._reader.read(reading, seen, None, 0, needed)
        done = lagging.align(seen.ids, needed, len(seen.ids) // len(self.prompt))
        if lagging.cache is None:
            lagging.cache = self._reader.new_cache()
            if records(self._global):
                lagging.cache.activate_past_recording()
            if reading.hidden is not None:
                reading.hidden.seed(self._global, lagging.cache)
                done = reading.hidden.shared
        logits = self._reader.read(reading, seen, lagging.cache, done, needed)
        lagging.ran(seen.ids, done)
        return logits

    def _join(self) -> None:
        """Stack the lagging branches, which have just caught up, onto the global cache: batched from here on."""
        caches: list[Any] = [lagging.cache for lagging in self._lagging]
        for index, reading in enumerate(self._readings):
            hidden = reading.hidden
            if hidden is None:
                continue
            if caches[index].get_seq_length() - hidden.shared + hidden.start != self._global.get_seq_length():
                return
            whole = self._reader.new_cache()
            hidden.whole(self._global, caches[index], whole)
            caches[index] = whole
        if not all(blocks.alike(self._global, cache) for cache in caches):
            return  # drafts are about to be taken back, or a sliding window has let go of some states
        blocks.append(self._global, caches)
        self._cache = blocks.in_blocks(self._global, 1 + len(self.branches))
        self._lagging = []
        self.trace.execution = "batched" if self._asked == "batched" else "joined"
        self.execution = "batched"

    def take_back(self, tokens: int) -> None:
        """Take tokens back from the lagging branches' caches, as for rejected drafts; raises where they can't be."""
        for lagging in self._lagging:
            lagging.take_back(tokens)

    # --- the end

    def close(self) -> None:
        """Give the cache back as the plain cache of the global branch."""
        if self._cache is not None:
            self._cache.only_global()
            self._cache = None

    def finish(self, output: Any) -> GuardTrace:
        """Return the trace, its steps filled in from what generate() returned.

        Raises:
            UnsupportedCallError: the guard did not see each of its tokens chosen.
        """
        sequences: Any = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if not any(self.call.has_picture):
            return self.trace
        each = 0 if sequences is None else len(sequences) // len(self.prompt)
        prompts = self.prompt.cpu().repeat_interleave(each, 0).tolist()
        if not prompts or sequences[:, : self.prompt.shape[1]].tolist() != prompts:
            raise _unseen(f"A {type(output).__name__} came back without the prompt and the answer's tokens after it.")
        answers = self.answers(sequences)
        for index, answer in enumerate(answers):
            seen = len(self._recorder.chosen(answer, index // each))
            if seen < len(answer):
                raise _unseen(f"The answer has {len(answer)} tokens, of which the guard saw the first {seen} chosen.")
        self.trace.steps = self._recorder.read(answers, each)
        return self.trace

    def answers(self, sequences: Tensor) -> list[list[int]]:
        """Return the tokens of each output sequence, [B * n, T], from the prompt's end to its own.

        Beam search fills what a stopping criterion ended with tokens that nobody chose: they are no part of an answer.
        """
        eos = set() if self.eos is None else set(self.eos.flatten().tolist())
        prompt, each = self.prompt.shape[1], len(sequences) // len(self.prompt)
        answers = answers_of(sequences, prompt, eos)
        if self._fill is not None:
            for index, answer in enumerate(answers):
                seen = len(self._recorder.chosen(answer, index // each))
                if 0 < seen < len(answer) and bool((sequences[index, prompt + seen :] == self._fill).all()):
                    answers[index] = answer[:seen]
        return answers


def _unseen(what: str) -> UnsupportedCallError:
    """Return the error for an answer that would be plain, in part at least, and say that it is guarded."""
    return UnsupportedCallError(
        f"{what} So it is not guarded: something between generate() and the model (a recipe of custom_generate, a "
        "wrapper, another thread) decodes in its own way. In each step give prepare_inputs_for_generation() the whole "
        "rows and call the model itself, in the same thread. A recipe that calls generate() is guarded without "
        "custom_generate: call its function. Or pass guard=False for a plain answer."
    )
