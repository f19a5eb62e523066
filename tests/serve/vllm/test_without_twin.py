"""A model that has no twin is served as vLLM has it, and `vote` and `apc` guard it as in transformers.

It holds in every release of vLLM that the extra `serve-vote` takes: run this file in an environment with another one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
import twin_engine
from matchers import Brightness
from tiny import picture
from twin_models import Reference, Request, checkpoint

from lvlm_guard.methods import AGLA, APC, Vote
from lvlm_guard.serve.engine.arguments import request_arguments
from lvlm_guard.serve.engine.plugin import CUT, FAMILIES
from lvlm_guard.serve.vote import PROCESSOR
from lvlm_guard.serve.vote.ballot import OBJECTS

torch.set_num_threads(1)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = tuple(sorted({a + b for a in LETTERS for b in LETTERS[::3]}))  # random answers start many of these


def test_apc_and_vote_say_what_transformers_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = checkpoint("qwen2_vl", tmp_path / "model")
    assert "Qwen2VLForConditionalGeneration" not in FAMILIES
    listed = tmp_path / "objects.txt"
    listed.write_text("\n".join(PAIRS))
    monkeypatch.setenv(OBJECTS, str(listed))
    reference = Reference(where)
    vote = Vote(matcher=Brightness(), objects=PAIRS, lam=4.0)
    requests = [
        Request("Describe the image.", [picture(seed, 40 + 20 * seed, 60)], method)
        for method in (APC(0.3), vote, APC(0.9), None)
        for seed in range(3)
    ]
    asked = {"all": [request.for_vllm(reference.processor) for request in requests]}
    got = twin_engine.answers(where, {"logits_processors": [CUT, PROCESSOR]}, asked)
    expected = [reference.answer(request) for request in requests]
    assert [answer["tokens"] for answer in got["answers"]["all"]] == [tokens for tokens, _ in expected]
    for answer, (_, logprobs) in zip(got["answers"]["all"], expected, strict=True):
        assert answer["logprobs"] == pytest.approx(logprobs, abs=1e-3)
    plain = expected[-3:]
    assert any(tokens != other for (tokens, _), (other, _) in zip(expected[3:6], plain, strict=True))
    assert all(logprobs != other for (_, logprobs), (_, other) in zip(expected[:3], plain, strict=True))


def test_a_method_that_needs_a_second_branch_is_refused_before_it_runs() -> None:
    from vllm import SamplingParams

    from lvlm_guard.serve.engine.guards import Cut

    Cut.validate_params(SamplingParams(extra_args=request_arguments(APC())))
    with pytest.raises(ValueError, match="agla needs a second branch"):
        Cut.validate_params(SamplingParams(extra_args=request_arguments(AGLA())))
