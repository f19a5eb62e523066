"""Several engines and several API servers behind one front: each is checked before names open, and each guards."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import httpx
from served import Server, answer_of, body, turn

from lvlm_guard.embedded import world

NAMES = ("embedded-agla", "embedded-vote", "embedded")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def answered(server: Server) -> dict[str, float]:
    """How many requests each engine has answered."""
    told = httpx.get(f"{server.url}/metrics", trust_env=False).text
    found: dict[str, float] = defaultdict(float)
    for engine, count in re.findall(r'^vllm:request_success_total\{[^}]*engine="(\d+)"[^}]*\} (\S+)', told, re.M):
        found[engine] += float(count)
    return dict(found)


def test_two_engines_are_both_checked_and_both_answer_as_transformers_does(tmp_path: Path, reference) -> None:
    server = Server(tmp_path, "--data-parallel-size", "2", "--api-server-count", "2")
    try:
        checked = answered(server)
        assert sorted(checked) == ["0", "1"]
        assert checked["0"] == checked["1"] >= 10  # the canary's questions

        talks = [(name, [turn(world.CAPTION_PROMPT, scene)]) for scene in range(8) for name in NAMES]

        async def ask() -> list[object]:
            async with server.async_client() as client:
                return await asyncio.gather(
                    *(client.chat.completions.with_raw_response.create(**body(name, talk)) for name, talk in talks)
                )

        said = [answer_of(raw) for raw in asyncio.run(ask())]
        for (name, talk), answer in zip(talks, said, strict=True):
            assert answer.tokens == reference.greedy(name, talk).tokens
            assert answer.guard["method"] == (name.partition("-")[2] or None)
        after = answered(server)
        assert all(after[engine] > checked[engine] for engine in checked)
    finally:
        server.stop()
