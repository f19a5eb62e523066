"""What a chat request may hold: a list of what is let through, so that what a new vLLM adds is closed until looked at.

Looked at with vLLM 0.32.0's `ChatCompletionRequest`. Fields that steer preprocessing, the cache's idea of a picture, or
the way tokens are chosen behind the guard's back are closed for every name; a few more are closed for guarded names.
"""

from __future__ import annotations

from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENAI = _names(
    """messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    parallel_tool_calls reasoning_effort user metadata store service_tier safety_identifier prompt_cache_key"""
)
"""Fields of OpenAI's interface."""

VLLM = _names(
    """top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side logprob_token_ids
    allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents
    chat_template_kwargs structured_outputs priority request_id session_id return_tokens_as_token_ids
    return_token_ids return_prompt_text cache_salt vllm_xargs repetition_detection stream_interval
    thinking_token_budget include_reasoning"""
)
"""Fields that vLLM adds."""

CLOSED = {
    "mm_processor_kwargs": "it steers how pictures are prepared, which the server alone does",
    "media_io_kwargs": "it steers how pictures are decoded, and the matcher would see others than the model",
    "use_beam_search": "vLLM's beam search drops the guard's arguments without a word; use n and temperature",
    "prompt_logprobs": "logits of the prompt are computed behind the guard; logprobs of the answer are served",
    "prompt_embeds": "embeddings can't be looked at, so they can't be guarded; send text",
    "chat_template": "a template from outside can leave the picture out, or run for very long",
    "kv_transfer_params": "caches from elsewhere hold one branch alone",
    "ec_transfer_params": "encoded pictures from elsewhere hold one view alone",
    "watermarking": "it changes the logits behind the guard",
}
"""Fields closed for every name, with the reason."""

_RUNNERS = "vLLM's two runners apply it on different sides of the guard"
_CUT = "a prompt that is cut can lose its picture"

NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "repetition_penalty": ((1,), _RUNNERS),
    "presence_penalty": ((0,), _RUNNERS),
    "frequency_penalty": ((0,), _RUNNERS),
    "truncate_prompt_tokens": ((-1,), _CUT),
    "truncation_side": ((), _CUT),
    "chat_template_kwargs": (({},), "the template could leave the picture out"),
}
"""Fields closed for guarded names, with the values that change nothing, and the reason."""
