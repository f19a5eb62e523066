"""The canary before an engine that guards by the core's own algebra, and before one with each fault it must find."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from front_server import MatcherStandIn, serving
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from transformers import AutoTokenizer

from lvlm_guard import embedded
from lvlm_guard.engine.assembly import complement, contrast, cut, plausible
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.launch.canary import Canary, CanaryError
from lvlm_guard.serve.launch.questions import check
from lvlm_guard.serve.wire import unpack_mask, unpack_scores

GUARDS = ("agla", "vcd", "apc", "vote")
VOCABULARY = 84
LOWEST = -9999.0  # vLLM's floor in JSON


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded.MODEL)


def drawn(seed: int) -> Tensor:
    return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


class Engine:
    """An app in vLLM's place with one step's logits for ever.

    Args:
        fault: what it does wrong.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.salts: list[str] = []

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.salts.append(body["cache_salt"])
        if self.fault == "no answer" and "vllm_xargs" in body:
            return JSONResponse({"error": {"message": "EngineDeadError", "code": 500}}, 500)
        plain = drawn(0)
        for token, bias in body.get("logit_bias", {}).items():
            plain[int(token)] += bias
        if "allowed_token_ids" in body:
            allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
            allowed[body["allowed_token_ids"]] = True
            plain = torch.where(allowed, plain, -torch.inf)
        guarded = self._guarded(plain, body)
        reported = (plain if self.fault == "raw" else guarded).log_softmax(-1).clamp(min=LOWEST).tolist()
        token = int(guarded.argmax())
        top = sorted(range(VOCABULARY), key=lambda t: -reported[t])[: body["top_logprobs"]]
        said = [{"token": f"token_id:{t}", "logprob": reported[t]} for t in top]
        step = {"token": f"token_id:{token}", "logprob": reported[token], "top_logprobs": said}
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}
        content = {"content": None if self.fault == "no logprobs" else [step] * body["max_tokens"]}
        return JSONResponse({"object": "chat.completion", "model": "tiny", "choices": [choice | {"logprobs": content}]})

    def _guarded(self, plain: Tensor, body: dict[str, Any]) -> Tensor:
        asked = body.get("vllm_xargs")
        if asked is None or self.fault == "no processor":
            return plain
        method, beta = asked["guard"], asked["guard_beta"]
        if self.fault == "another row":
            plain = plain.roll(1)
        keep = plausible(plain, beta) if self.fault != "no cut" else torch.isfinite(plain)
        if method == "vote":
            voted = plain.clone()
            p = unpack_scores(asked["guard_scores"]).get(asked.get("guard_claim"), 0.5)
            yes = tokenizer().convert_tokens_to_ids("yes")
            if keep.sum() > 1 and self.fault != "no votes":
                voted[yes] += asked["guard_lam"] * log_odds(p) * (0.5 if self.fault == "half a vote" else 1)
            return cut(voted, plain, keep)
        views = body.get("mm_processor_kwargs", {})
        second = drawn(1) if "guard_noise" in views and self.fault != "no noise" else drawn(0)
        if "guard_mask" in views and self.fault != "no mask":
            second = second + float(unpack_mask(views["guard_mask"]).mean()) * drawn(2)
        if method == "agla":
            return cut(complement(plain, second, asked["guard_alpha"]), plain, keep)
        if method == "vcd":
            return cut(contrast(plain, second, asked["guard_alpha"]), plain, keep)
        return cut(plain, plain, keep)


@contextmanager
def canary_of(engine: Engine, folder: Path, matcher: MatcherStandIn | None = None) -> Iterator[Canary]:
    with serving((matcher or MatcherStandIn()).app()) as maskd, serving(engine.app()) as upstream:
        settings = FrontSettings(
            ("tiny",), GUARDS, upstream=upstream, maskd_url=maskd, opened=str(folder / "open"), token="token"
        )
        yield from asked_at(settings)


def asked_at(settings: FrontSettings) -> Iterator[Canary]:
    front = Front(settings, key="key", metrics=FrontMetrics(CollectorRegistry()))
    with serving(front) as url:
        canary = Canary(url, "tiny", "token", "key", seconds=20, patience=2)
        yield canary
        canary.close()


def test_guards_that_act_pass_and_no_two_questions_share_a_cache(tmp_path: Path) -> None:
    engine = Engine()
    with canary_of(engine, tmp_path) as canary:
        check(canary, GUARDS, tokenizer)
    assert len(set(engine.salts)) == len(engine.salts) > 15


@pytest.mark.parametrize(
    ("fault", "guard", "question"),
    [
        *(("no processor", guard, "cut") for guard in GUARDS),
        *(("raw", guard, "cut") for guard in GUARDS),
        *(("no cut", guard, "cut") for guard in GUARDS),
        *(("another row", guard, "plain") for guard in GUARDS),
        ("no mask", "agla", "moved"),
        ("no noise", "vcd", "moved"),
        ("no votes", "vote", "moved"),
        ("half a vote", "vote", "moved"),
        ("no answer", "agla", "500"),
        ("no logprobs", "apc", "no log-probabilities"),
    ],
)
def test_a_guard_that_does_not_act_is_found(fault: str, guard: str, question: str, tmp_path: Path) -> None:
    with (
        canary_of(Engine(fault), tmp_path) as canary,
        pytest.raises(CanaryError, match=rf"{guard} does not guard.*{question}"),
    ):
        check(canary, (guard,), tokenizer)


@pytest.mark.slow
def test_a_matcher_that_gives_no_mask_is_found(tmp_path: Path) -> None:
    with (
        canary_of(Engine(), tmp_path, MatcherStandIn(fails=503)) as canary,
        pytest.raises(CanaryError, match=r"agla does not guard \(matcher\).*503"),
    ):
        check(canary, ("agla",), tokenizer)


def test_a_server_that_is_not_there_is_found() -> None:
    canary = Canary("http://127.0.0.1:1", "tiny", "token")
    with pytest.raises(CanaryError, match="gave no answer"):
        check(canary, ("apc",), tokenizer)
    canary.close()


def test_a_wrong_key_is_found(tmp_path: Path) -> None:
    with canary_of(Engine(), tmp_path) as right:
        canary = Canary(right.url, "tiny", "token", "wrong")
        with pytest.raises(CanaryError, match="401"):
            check(canary, ("apc",), tokenizer)
        canary.close()


def test_an_answer_without_the_guards_header_is_found(tmp_path: Path) -> None:
    async def unmarked(request: Request) -> Response:
        step = {"token": "token_id:1", "logprob": 0.0, "top_logprobs": []}
        body = json.dumps({"choices": [{"logprobs": {"content": [step]}}]})
        return Response(body, media_type="application/json")

    bare = Starlette(routes=[Route("/v1/chat/completions", unmarked, methods=["POST"])])
    with serving(bare) as url:
        canary = Canary(url, "tiny", "token")
        with pytest.raises(CanaryError, match="without saying that agla ran"):
            check(canary, ("agla",), tokenizer)
        canary.close()
