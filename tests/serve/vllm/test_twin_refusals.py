"""Engines in which a guard would be wrong are not started, and requests that mean nothing are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import twin_engine

os.environ |= twin_engine.QUIET  # read when vllm is imported

import torch
from tiny import picture
from twin_models import ARCHITECTURE, checkpoint
from vllm import EngineArgs, SamplingParams
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins

from lvlm_guard.errors import GuardError
from lvlm_guard.methods import AGLA, APC, VCD
from lvlm_guard.serve.engine.guards import Guards, assembled
from lvlm_guard.serve.engine.handover import Handover, open_handover
from lvlm_guard.serve.engine.refuse import amiss, refuse
from lvlm_guard.serve.errors import ServeError, WireError
from lvlm_guard.serve.wire import pack_mask


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    load_general_plugins()
    return lambda family: checkpoint(family, tmp_path_factory.getbasetemp() / family)


def config(where: Path, family: str, **options: Any) -> Any:
    given = twin_engine.OPTIONS | twin_engine.twin(ARCHITECTURE[family]) | options
    given.pop("disable_log_stats")
    return EngineArgs(model=str(where), **given).create_engine_config()


@pytest.mark.parametrize("family", ARCHITECTURE)
def test_the_engine_that_the_server_starts_is_not_refused(checkpoints: Any, family: str) -> None:
    assert amiss(config(checkpoints(family), family)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logits_processors": []}, "pass --logits-processors lvlm_guard"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"enable_lora": True}, "LoRA"),
        ({"enable_prompt_embeds": True}, "Prompt embeddings"),
        ({"enable_mm_embeds": True}, "Image embeddings"),
        ({"pipeline_parallel_size": 2}, "Pipeline"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}}, "Speculat"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "quantised KV cache"),
        ({"compilation_config": {"mode": 0, "cudagraph_mm_encoder": True}}, "leave the second view out"),
    ],
)
def test_an_engine_that_would_break_a_guard_is_refused(checkpoints: Any, options: dict[str, Any], said: str) -> None:
    found = config(checkpoints("llava"), "llava", **options)
    with pytest.raises(ServeError, match=said):
        refuse(found)


def test_a_compiled_engine_is_refused(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    found = config(checkpoints("llava"), "llava", enforce_eager=False, compilation_config={"mode": 3})
    with pytest.raises(ServeError, match=r"torch.compile.*--enforce-eager"):
        refuse(found)


def test_videos_are_refused_where_the_model_takes_them(checkpoints: Any) -> None:
    found = config(checkpoints("qwen2_5_vl"), "qwen2_5_vl", limit_mm_per_prompt={"image": 1})
    with pytest.raises(ServeError, match="video"):
        refuse(found)


def test_the_processor_refuses_an_engine_without_a_twin(checkpoints: Any) -> None:
    plain = config(checkpoints("llava"), "llava", hf_overrides={})
    with pytest.raises(ServeError, match="no second branch"):
        Guards(plain, torch.device("cpu"), False)


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"prompt_logprobs": 1},
        {"extra_args": {"guard": "algae"}},
        {"extra_args": {"guard": "agla", "guard_beta": 2}},
    ],
)
def test_a_request_that_no_guard_can_honour_is_refused_before_it_runs(params: dict[str, Any]) -> None:
    with pytest.raises(GuardError):
        Guards.validate_params(SamplingParams(**{"extra_args": {"guard": "agla"}} | params))


def test_a_plain_request_may_have_penalties() -> None:
    assert Guards.asked(SamplingParams(repetition_penalty=1.1, prompt_logprobs=1)) is None


@pytest.mark.parametrize("method", [AGLA(), AGLA(0, 0), VCD(), VCD(1, 0), APC()])
def test_a_forbidden_token_stays_forbidden_and_the_best_allowed_one_survives(method: Any) -> None:
    torch.manual_seed(0)
    logits, second = torch.randn(4, 50) * 4, torch.randn(4, 50) * 4
    logits[:, ::2] = -torch.inf
    made = assembled(method, logits.clone(), second)
    assert made[:, ::2].isneginf().all()
    best = logits.argmax(-1, keepdim=True)
    assert (made.gather(1, best) > -1000).all()
    assert not made.isnan().any()


def test_logits_of_the_second_branch_are_taken_once_and_for_all_rows(checkpoints: Any) -> None:
    first, other = config(checkpoints("llava"), "llava"), config(checkpoints("llava"), "llava")
    handover = open_handover(first)
    assert open_handover(first) is handover
    assert open_handover(other) is not handover
    handover.put(torch.ones(3, 2))
    assert handover.take(3).shape == (3, 2)
    with pytest.raises(RuntimeError, match="left 0"):
        handover.take(3)
    handover.put(torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="left 2"):
        handover.take(3)
    assert Handover() is not handover


KEEP = pack_mask(torch.rand(32, 32).gt(0.5).numpy())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"guard_mask": [KEEP]}, "1 masks for 2 pictures"),
        ({"guard_mask": KEEP}, "1 masks for 2 pictures"),
        ({"guard_mask": [KEEP, KEEP, KEEP]}, "3 masks for 2"),
        ({"guard_mask": [KEEP, "no mask"]}, "can't be read"),
        ({"guard_mask": {"0": KEEP, "1": KEEP}}, "a dict"),
        ({"guard_mask": [KEEP, 1]}, "a list"),
        ({"guard_noise": 500}, "guard_noise is 500"),
        ({"guard_noise": {"steps": 500}}, "guard_noise is"),
        ({"guard_noise": {"step": 1000}}, "0 to 999"),
    ],
)
def test_a_second_view_that_can_t_be_made_is_an_error(checkpoints: Any, arguments: dict[str, Any], said: str) -> None:
    model = config(checkpoints("llava"), "llava").model_config
    processor = MULTIMODAL_REGISTRY.create_processor(model)
    pictures = processor.info.parse_mm_data({"image": [picture(1), picture(2)]})
    with pytest.raises(GuardError, match=said):
        processor(
            processor.info.get_tokenizer().encode("<image><image>", add_special_tokens=False),
            mm_items=pictures,
            hf_processor_mm_kwargs=arguments,
        )
    assert issubclass(WireError, ValueError)  # which vLLM answers with 400
