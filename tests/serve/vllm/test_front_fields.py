"""The front's list of fields against this vLLM's own: what an upgrade adds is closed until somebody looks at it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from lvlm_guard.serve.front.fields import CLOSED, OPENAI, VLLM

LEFT_OUT = {"routed_experts_prompt_start", "return_token_offsets", "mm_payload", "return_mm_kwargs"}
"""Fields of the render routes, which are closed, and of mixtures of experts."""


def test_every_field_of_vllm_s_chat_request_was_looked_at() -> None:
    assert set(ChatCompletionRequest.model_fields) - OPENAI - VLLM - set(CLOSED) == LEFT_OUT


def test_the_fields_that_are_let_through_or_closed_for_vllm_are_fields_of_vllm() -> None:
    assert set(ChatCompletionRequest.model_fields) >= VLLM
    assert set(CLOSED) - set(ChatCompletionRequest.model_fields) == {"prompt_embeds"}
