"""The logits processor that vLLM loads: one class for both of its model runners.

    --logits-processors lvlm_guard.serve.vote.processor:VoteProcessor --logprobs-mode processed_logprobs

The model is left as it is, whatever its architecture; a step without guarded rows costs one look at a dictionary.
vLLM runs this after grammars, allowed ids, minimum lengths and logit bias, and before temperature, top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase
from vllm.tokenizers import cached_tokenizer_from_config

from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.logits import V1Processor, V2Processor, process_dict_updates
from lvlm_guard.serve.overruled import drawn_of, engine_counts
from lvlm_guard.serve.penalties import check_no_penalties
from lvlm_guard.serve.vote.ballot import Ballot, ballot_of, served_vocabulary, take_vocabulary
from lvlm_guard.serve.vote.counting import Counting

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState


@dataclass(frozen=True)
class _Seat:
    """A guarded row of the V1 runner: its ballot, and its answer as the runner's own growing list."""

    ballot: Ballot
    answer: list[int]


class VoteProcessor(V1Processor, V2Processor):  # type: ignore[misc]  # untyped where vllm is missing
    """Applies `vote` to the requests that carry it.

    V1 runner: __init__(config, device, is_pin_memory), update_state, apply(logits), rows by batch index.
    V2 runner: __init__(config, req_states), add_request, apply(logits, ctx), rows by request slot.

    Raises:
        ServeError: the engine has no tokenizer that can be searched, drafts tokens ahead, or would report
            log-probabilities that were not sampled from.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        device_or_states: torch.device | LogitsProcRequestState,
        is_pin_memory: bool | None = None,
    ) -> None:
        model = vllm_config.model_config
        if vllm_config.speculative_config is not None:
            raise ServeError("vote needs one row a request, which speculative decoding does not give: leave it off.")
        if not model.logprobs_mode.startswith("processed"):
            raise ServeError(
                f"--logprobs-mode {model.logprobs_mode} would report log-probabilities that no guarded token was drawn "
                "by: give --logprobs-mode processed_logprobs."
            )
        tokenizer = cached_tokenizer_from_config(model)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ServeError(
                f"vote finds names in what tokens spell, and the tokenizer is {type(tokenizer).__name__}, none of "
                "transformers: leave --skip-tokenizer-init off and --tokenizer-mode at hf."
            )
        take_vocabulary(vllm_config.additional_config)
        self._count = Counting(tokenizer, served_vocabulary())
        self._overruled = engine_counts()
        self._states = device_or_states if is_pin_memory is None else None
        self._rows: dict[int, _Seat] = {}
        self._slots: dict[int, Ballot] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise `GuardError`, a `ValueError`, where a request can't be guarded as asked; its client gets a 400."""
        _ballot(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Greedy answers are voted on too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow rows that come, go and move (V1)."""
        if self._overruled is not None:
            self._overruled.settle()
        process_dict_updates(self._rows, batch_update, _seat)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take a request into a slot, whoever had it before (V2)."""
        ballot = _ballot(sampling_params)
        if ballot is None:
            self._slots.pop(req_idx, None)
            return False
        self._slots[req_idx] = ballot
        return True

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Return the logits, guarded rows assembled in place; [rows, V] float32."""
        if ctx is not None:
            return self._apply_to_slots(logits, ctx)
        if not self._rows:
            return logits
        ballots = {row: seat.ballot for row, seat in self._rows.items()}
        return self._count(logits, ballots, lambda rows: [_known(self._rows[row].answer) for row in rows], self._seen)

    def _seen(self, rows: Sequence[int], flags: Tensor | None) -> None:
        if self._overruled is not None:
            self._overruled.hold(Vote.name, [self._rows[row].answer for row in rows], flags)

    def _apply_to_slots(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        if not self._slots:
            return logits
        slots: list[int] = ctx.idx_mapping_np.tolist()
        if len(slots) != logits.shape[0]:
            raise ServeError(f"vLLM gave {logits.shape[0]} rows for {len(slots)} requests; vote needs one a request.")
        ballots = {row: self._slots[slot] for row, slot in enumerate(slots) if slot in self._slots}

        def seen(rows: Sequence[int], flags: Tensor | None) -> None:
            if self._overruled is not None:
                self._overruled.add(Vote.name, drawn_of(self._states, ctx, rows), flags)

        return self._count(logits, ballots, lambda rows: self._answers(rows, slots, ctx), seen)

    def _answers(self, rows: Sequence[int], slots: list[int], ctx: LogitsContext) -> list[list[int]]:
        """Return each row's answer so far; waits for the device once."""
        import torch

        states: Any = self._states
        starts = [int(states.prompt_len.np[slots[row]]) for row in rows]
        ends = [int(ctx.seq_lens_upper_bound_np[row]) for row in rows]
        tokens = states.all_token_ids.gpu
        chosen = torch.tensor([slots[row] for row in rows], device=tokens.device)[:, None]
        # within a prompt's chunks an answer has not begun
        written = [max(0, end - start) for start, end in zip(starts, ends, strict=True)]
        columns = torch.tensor(starts, device=tokens.device)[:, None] + torch.arange(max(written), device=tokens.device)
        answers = tokens[chosen, columns.clamp(max=tokens.shape[1] - 1)].tolist()
        return [answer[:n] for answer, n in zip(answers, written, strict=True)]


def _ballot(params: SamplingParams) -> Ballot | None:
    ballot = ballot_of(params.extra_args)
    if ballot is None:
        return None
    check_no_penalties(params)
    return ballot


def _seat(params: SamplingParams, prompt: list[int] | None, answer: list[int]) -> _Seat | None:
    ballot = _ballot(params)
    return None if ballot is None else _Seat(ballot, answer)


def _known(answer: list[int]) -> list[int]:
    if answer and answer[-1] < 0:
        raise ServeError("vLLM has not said which token it drew last, so a vote would be on the wrong word.")
    return answer
