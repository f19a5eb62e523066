"""The logits processor that vLLM loads for `vote`.

    --logits-processors lvlm_guard.serve.vote.processor:VoteProcessor --logprobs-mode processed_logprobs

The model is left as it is, whatever its architecture; a step without guarded rows costs one look at a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from vllm.tokenizers import cached_tokenizer_from_config

from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.logits import Rows
from lvlm_guard.serve.vote.ballot import Ballot, ballot_of, served_vocabulary, take_vocabulary
from lvlm_guard.serve.vote.counting import Counting


class VoteProcessor(Rows):
    """Applies `vote` to the requests that carry it.

    Raises:
        ServeError: the engine has no tokenizer that can be searched, drafts tokens ahead, or would report
            log-probabilities that were not sampled from.
    """

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> None:
        super().__init__(vllm_config, device_or_states, is_pin_memory)
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
        self._voted = Counting(tokenizer, served_vocabulary())

    @classmethod
    def read(cls, params: Any) -> Ballot | None:
        """Return a request's ballot; see `Rows`."""
        return ballot_of(params.extra_args)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Return the logits, guarded rows assembled in place; [rows, V] float32."""
        ballots = self.guarded(logits, ctx)
        return self._voted(logits, ballots, partial(self._answers, ctx), partial(self.count, Vote.name, ctx))

    def _answers(self, ctx: Any, rows: Sequence[int]) -> list[list[int]]:
        """Return each row's answer so far; of the V2 runner, waits for the device once."""
        if ctx is None:
            return [_known(self._rows[row][1]) for row in rows]
        states, slots = self._states, ctx.idx_mapping_np[list(rows)]
        starts = [int(states.prompt_len.np[slot]) for slot in slots]
        ends = [int(ctx.seq_lens_upper_bound_np[row]) for row in rows]
        tokens = states.all_token_ids.gpu
        chosen = torch.tensor(slots.tolist(), device=tokens.device)[:, None]
        # within a prompt's chunks an answer has not begun
        written = [max(0, end - start) for start, end in zip(starts, ends, strict=True)]
        columns = torch.tensor(starts, device=tokens.device)[:, None] + torch.arange(max(written), device=tokens.device)
        answers = tokens[chosen, columns.clamp(max=tokens.shape[1] - 1)].tolist()
        return [answer[:n] for answer, n in zip(answers, written, strict=True)]


def _known(answer: list[int]) -> list[int]:
    if answer and answer[-1] < 0:
        raise ServeError("vLLM has not said which token it drew last, so a vote would be on the wrong word.")
    return answer
