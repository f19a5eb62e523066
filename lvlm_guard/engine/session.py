"""One guarded `generate()` call: branch, assemble, record - step by step, inside the model's call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lvlm_guard.engine import rows as blocks
from lvlm_guard.engine.assembly import upcast
from lvlm_guard.engine.call import Call, within
from lvlm_guard.engine.hiding import shareable
from lvlm_guard.engine.method import Method, Step
from lvlm_guard.engine.reading import Prepared, Reader, Reading, encodes_first
from lvlm_guard.engine.steering import INSTEAD, Inside, Pass
from lvlm_guard.engine.trace import Recorder, answers_of
from lvlm_guard.errors import KnobError, UnsupportedCallError

if TYPE_CHECKING:
    from lvlm_guard.engine.trace import GuardTrace

Execution = Literal["auto", "lazy", "batched"]
EXECUTIONS = ("auto", "lazy", "batched")
EARLY = 1  # tokens within which an answer that has one undecided token has it
FEW = 3  # few requests want a branch: no more than one in so many


class Session:
    """The state of one guarded call; made by the guarded `generate()`, found by the guarded `__call__`.

    It runs as `execution` says, "auto", "lazy" or "batched", and records each token for `GuardTrace.steps` or not.
    """

    def __init__(self, call: Call, method: Method, execution: Execution, keep_steps: bool) -> None:
        if execution not in EXECUTIONS:
            raise KnobError(f"execution is {execution!r}: give 'auto', 'lazy' or 'batched'.")
        self.call, self.method, self._asked = call, method, execution
        self.prompt, _ = call.asked
        self.trace: GuardTrace = call.trace
        self.branches = method.branches() if call.trace.guarded else ()
        self._reader = Reader(call)
        self.readings: list[Reading] = []  # how each branch reads the rows, once a step wanted one
        self._inside = Inside(call, method)
        self._recorder = Recorder([branch.name for branch in self.branches], keep_steps)
        self.prepared: Prepared | None = None
        self.eos: Tensor | None = None
        self._fill: int | None = None  # what beam search fills its shorter answers up with
        self._longest = 0
        self._eager = call.family.proof.way is None  # the branches run from the first step on, wanted or not
        self._joins = False  # once they have run, their rows are stacked on the global ones
        self._stacked = False
        self._in_chunks = False
        self._idle = True  # no branch has run yet

    def starts(self, config: Any, arguments: dict[str, Any]) -> None:
        """Learn the cache and the end-of-text tokens; decide how the branches run.

        Raises `UnsupportedCallError` where the prompt is read, or the cache kept, as some branch can't follow.
        """
        self.eos, self._longest = config._eos_token_tensor, config.max_length
        if config.num_beams > 1:
            pad = config._pad_token_tensor  # as `_beam_search` of transformers chooses
            self._fill = -1 if self.eos is None else int(pad or self.eos[0])
        cache = self._reader.shared = arguments.get(blocks.CACHE)
        cached = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        name, chunks, acts = self.method.name, config.prefill_chunk_size is not None, self._inside.acts
        whole = "a prompt in chunks" if chunks else f"a compiled call with a {type(cache).__name__}"
        hiding = next((branch.name for branch in self.branches if branch.hides), None)
        unshared = None if hiding is None else shareable(cache, self._longest)
        refused = (
            (
                cache is None and any(isinstance(value, Cache) for value in arguments.values()),
                f"This release of transformers keeps its cache under another name than {blocks.CACHE!r}, which this "
                "release of lvlm-guard does not know. Upgrade lvlm-guard, or install an older transformers.",
            ),
            (
                cached and self.prompt.shape[1] <= cached,
                f"past_key_values holds {cached} tokens but input_ids only {self.prompt.shape[1]}: the other "
                "branches must read the whole conversation once. Pass the whole sequence as input_ids (transformers "
                "skips what the cache holds).",
            ),
            (
                chunks and self.branches and not encodes_first(self.call.model),
                "prefill_chunk_size: this release of transformers reads a prompt in chunks without looking at its "
                "picture, for any answer, guarded or not. Leave prefill_chunk_size out, or upgrade transformers.",
            ),
            (
                acts and (chunks or getattr(cache, "is_compileable", False)),
                f"{name} acts inside the model's layers, on the prompt as a whole; {whole} does not show it. "
                f"Leave {'prefill_chunk_size' if chunks else 'cache_implementation'} out. {INSTEAD}",
            ),
            (
                cached and any(branch.prompt for branch in self.branches),
                f"past_key_values: {name} reads a prompt of its own, which the first turn's inputs don't tell of a "
                "later turn. Pass the whole conversation through the processor, without past_key_values.",
            ),
            (
                unshared,
                f"The branch {hiding!r} reads the model's own KV cache with some of the picture's tokens taken out, "
                f"and here {unshared}. Use a method that reads a second picture, such as 'agla', or pass guard=False "
                "for a plain answer.",
            ),
        )
        if (why := next((told for found, told in refused if found), None)) is not None:
            raise UnsupportedCallError(why)
        if not self.branches:
            return
        if cached and not all(branch.hides for branch in self.branches):
            self._reader.from_the_start(arguments)
        impossible, self.trace.execution = self._unstackable(config, cache, cached), "lazy"
        if self._asked == "batched" and impossible:
            self.trace.note(f"Ran lazy instead of batched: {impossible}.")
        elif self._asked == "batched":  # each branch reads the prompt by itself, in shapes of its own
            self._eager, self._joins, self.trace.execution = True, cache is not None, "batched"
            if cache is not None and type(cache) is not DynamicCache:
                self._reader.empty = copy.deepcopy(cache)  # of the same size, so that its rows can be joined
        elif self._asked == "auto":
            self._joins = not impossible and type(cache) is DynamicCache

    def _unstackable(self, config: Any, cache: Any, cached: int) -> str | None:
        """Return why branches can't be stacked, or None."""
        name, model, kind = self.method.name, self.call.model, type(cache).__name__
        holes = any(branch.hides for branch in self.branches) and type(cache) is not DynamicCache
        reasons = (
            ("batched" not in self.method.executions, f"{name} leaves its branch idle most of the time"),
            (self._inside.acts, f"{name} acts inside the global branch alone"),
            (not all(branch.stacks for branch in self.branches), f"{name} reads its own prompt, or steers its branch"),
            (cached, "past_key_values holds the global branch alone"),
            (not self.call.family.proof.stacks, f"a {type(model).__name__} was not proven to stack its branches"),
            (not blocks.stackable(cache, model.config), f"a {kind} can't be stacked"),
            (holes, f"a branch that hides can't be stacked on a {kind}"),
            (config.prefill_chunk_size is not None, "the prompt is read in chunks"),
            (config.output_hidden_states or config.output_attentions, "hidden states or attentions are asked for"),
        )
        return next((why for found, why in reasons if found), None)

    def prefill_in_chunks(self, ids: Tensor, arguments: dict[str, Any], prefill: Callable[[], Any]) -> Any:
        """Run a chunked prefill with the global branch alone, then assemble its last logits."""
        whole, self._in_chunks = Prepared(ids, dict(arguments)), True
        outputs = prefill()
        self.prepared, self._in_chunks = whole, False
        outputs.logits = self._assembled(outputs.logits[:, -1:], None)
        return outputs

    def forward(self, run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Run all branches for one call of generate() and return the global one's output, logits assembled.

        `run` is the plain model call (compiled where generate() compiles it), `inputs` its arguments for R rows.
        """
        if self.prepared is None:
            raise UnsupportedCallError(
                "generate() reached the model without prepare_inputs_for_generation(), so the guard can't know which "
                "rows this call is about. guidance_scale calls the model so, for a second reading of its own: leave it "
                "out. A wrapper around generate() may replace that step (PEFT's prompt learning does): guard the "
                "wrapped model's plain decoder. Or pass guard=False."
            )
        self.trace.global_forwards += 1
        others = None
        with within(self.call.model, None):  # a compiled call that falls back to eager is the guarded one
            if self._stacked:
                outputs, others = self._run_stacked(run, inputs)
            elif self._inside.acts:
                ids, arguments = self.prepared
                done, request = ids.shape[1] - inputs["input_ids"].shape[1], self._requests(len(ids))
                mask = arguments.get(blocks.MASK)
                with self._inside.acting(Pass(self.call, ids, done, self.prompt.shape[1], request, mask)):
                    outputs = run(**inputs)
            else:
                outputs = run(**inputs)
        if not self._in_chunks:
            outputs.logits = self._assembled(outputs.logits, others)
        return outputs

    def _run_stacked(self, run: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, tuple[Tensor, ...]]:
        """Run all branches as one; returns the global one's output, and the logits of the others, [R, Q, V] each."""
        assert self.prepared is not None
        rows = len(self.prepared.ids)
        views = [reading.view for reading in self.readings]
        holes = [None if reading.hidden is None else reading.hidden.hides for reading in self.readings]
        outputs = run(**blocks.stack(inputs, views, rows, holes))
        self.trace.local_tokens += len(views) * int(inputs["input_ids"].numel())
        outputs.logits, *others = outputs.logits.split(rows)
        return outputs, tuple(others)

    def _assembled(self, logits: Tensor, others: tuple[Tensor, ...] | None) -> Tensor:
        """Assemble the positions that predict a token of the answer; logits [R, Q, V] -> [R, Q, V]."""
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        if not self.trace.guarded:
            return logits
        ids = prepared.ids
        length, answers = logits.shape[1], ids.shape[1] - self.prompt.shape[1] + 1
        if answers <= 0:
            raise _unseen(
                f"The model was called about rows of {ids.shape[1]} tokens, fewer than the prompt's "
                f"{self.prompt.shape[1]}, so the guard can't know where they go on."
            )
        count = min(length, answers)  # of the kept positions, those at or after the prompt's last token
        step = self._step(logits[:, length - count :], ids, answers)
        guarded = self.call.guarded(step.request, step.raw.device)
        self._inside.check(step)
        lagging, ran = others is None and bool(self.branches), None
        decided = self.method.decided(step) if lagging or self._recorder.keep else None
        if lagging and decided is not None:
            wanted = self._wanted(decided, guarded, ids, count)
            if wanted is not None:
                others, ran = self._others(prepared, step, wanted, count)
        flat = None
        if others is not None:
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
        """Return what the method sees of the last positions, [R, count, V]."""
        rows, count, _ = logits.shape
        raw, written = logits.flatten(0, 1), ids[:, self.prompt.shape[1] :].tolist()

        def prefix(row: int) -> list[int]:
            found: list[int] = written[row // count][: answers - count + row % count]
            return found

        t = torch.arange(answers - count + 1, answers + 1, device=raw.device)
        t = t.repeat(rows) if rows > 1 else t
        return Step(upcast(raw), raw, t, self._requests(rows * count), prefix, self.call, self._inside.states(count))

    def _requests(self, rows: int) -> list[int]:
        """Return which request each of so many rows belongs to."""
        return [row * len(self.prompt) // rows for row in range(rows)]

    def _wanted(self, decided: Tensor, guarded: Tensor | None, ids: Tensor, count: int) -> Tensor | None:
        """Return which rows want the branches, [R] bool: undecided ones that are guarded and go on; None: none does."""
        wanted = torch.ones_like(decided) if self._eager else ~decided
        if guarded is not None:
            wanted &= guarded
        if self.eos is not None and len(ids) > 1 and bool(wanted.any()):
            ended = torch.isin(ids[:, self.prompt.shape[1] :], self.eos.to(ids.device)).any(-1)
            wanted &= ~ended.repeat_interleave(count)
        return wanted if bool(wanted.any()) else None

    def _others(
        self, prepared: Prepared, step: Step, wanted: Tensor, needed: int
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Run the lagging branches for the rows that want them, [R] bool.

        Returns their last `needed` logits, [R / needed, needed, V] each, and for which rows they ran (None: all).
        The first time, where few requests want them, only those are matched, encoded and read, and nothing is kept:
        yes/no answers have one undecided token, their first, and mostly few rows of a batch have it. Where a later
        token is the first undecided one, more follow. The other rows are decided: their own logits stand in.
        """
        rows, ids = len(prepared.ids), prepared.ids
        call, requests, chosen = self.call, list(range(len(self.prompt))), None
        first, self._idle = self._idle and ids.shape[1] - self.prompt.shape[1] < EARLY, False
        if first:
            few = sorted({step.request[row] for row in wanted.nonzero().flatten().tolist()})
            if FEW * len(few) <= len(self.prompt) and (part := self.call.only(few)) is not None:
                call, requests, own = part, few, self._requests(rows)
                chosen = torch.tensor([row for row in range(rows) if own[row] in few], device=ids.device)
                prepared = Prepared(ids[chosen], blocks.only_rows(prepared.arguments, chosen, rows))
        readings = self.readings or [self._reader.opened(one, call, requests, prepared) for one in self.branches]
        others = [reading.caught_up(prepared, needed, chosen) for reading in readings]
        if chosen is not None:
            raw = step.raw.view(rows, needed, -1)
            chosen = chosen.to(raw.device)
            ran = torch.zeros(rows, dtype=torch.bool, device=raw.device).index_fill(0, chosen, True)
            return tuple(raw.index_copy(0, chosen, each.to(raw)) for each in others), ran.repeat_interleave(needed)
        self.readings = readings
        if self._joins and ids.shape[1] + 1 < self._longest:
            self._join()
        return tuple(others), None

    def _join(self) -> None:
        """Stack the lagging branches, which have just caught up, onto the global cache: batched from here on."""
        shared, caches = self._reader.shared, []
        for reading in self.readings:
            own, hidden = reading.cache, reading.hidden
            caches.append(own if hidden is None else hidden.whole(shared, own, self._reader.new_cache()))
        if None not in caches and blocks.joined(shared, caches):
            self._stacked = True
            if self._asked == "auto":
                self.trace.execution = "joined"
            for reading in self.readings:
                reading.drop()

    def close(self) -> None:
        """Give the cache back as the plain cache of the global branch."""
        if self._stacked:
            self._reader.shared.only_global()
            self._stacked = False

    def finish(self, output: Any) -> GuardTrace:
        """Return the trace, its steps filled in from what generate() returned.

        Raises `UnsupportedCallError` where the guard did not see each of its tokens chosen.
        """
        sequences: Any = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if not self.trace.guarded:
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
        answers = answers_of(sequences, self.prompt.shape[1], eos)
        for index, answer in enumerate(answers if self._fill is not None else ()):
            seen = len(self._recorder.chosen(answer, index * len(self.prompt) // len(answers)))
            if seen and {*answer[seen:]} == {self._fill}:
                del answer[seen:]
        return answers


def _unseen(what: str) -> UnsupportedCallError:
    """Return the error for an answer that would be plain, in part at least, and say that it is guarded."""
    return UnsupportedCallError(
        f"{what} So it is not guarded: something between generate() and the model (a recipe of custom_generate, a "
        "wrapper, another thread) decodes in its own way. In each step give prepare_inputs_for_generation() the whole "
        "rows and call the model itself, in the same thread. A recipe that calls generate() is guarded without "
        "custom_generate: call its function. Or pass guard=False for a plain answer."
    )
