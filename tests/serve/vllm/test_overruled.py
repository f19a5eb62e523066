"""Overruled tokens in real engines, against the plain logits that transformers computes over the same answers.

Answers are greedy, so a token was overruled where the plain logits prefer another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import checkpoints
import tiny
import torch
import twin_engine
import vote_engine
from matchers import Brightness
from transformers import AutoModelForImageTextToText, AutoProcessor
from twin_models import ARCHITECTURE, Request, checkpoint, prompt_of, questions

from lvlm_guard.methods import AGLA, APC, VCD
from lvlm_guard.serve.vote import ballot
from lvlm_guard.serve.wire import pack_scores

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = tuple(sorted({a + b for a in LETTERS for b in LETTERS[::3]}))  # random answers start many of these
CHUNKS = {"max_num_batched_tokens": 32, "max_num_seqs": 4}


@torch.no_grad()
def others(model: Any, inputs: Any, answer: list[int]) -> int:
    """Return how many tokens of an answer are not the ones that the plain logits prefer."""
    start = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]).logits
    return int((logits[0, start - 1 : -1].argmax(-1) != ids[0, start:]).sum())


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_vote_counts_each_token_drawn_and_each_overruled_once_though_prompts_come_in_chunks(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = checkpoints.tiny_llava(tmp_path / "model")
    objects = tmp_path / "objects.txt"
    objects.write_text("\n".join(PAIRS))
    monkeypatch.setenv(ballot.OBJECTS, str(objects))
    text = tiny.prompt(processor, "Describe the picture. " * 2)
    claims = ballot.claims_of("Describe the picture.")
    requests = []
    for seed in range(8):
        picture = tiny.picture(seed, 112, 112)
        scores = pack_scores(claims, Brightness().support(picture, claims).tolist())
        guard = {"guard": "vote", "guard_lam": 4.0, "guard_scores": scores} if seed % 4 else None
        sampling = {"max_tokens": 5 + 3 * seed, "extra_args": guard}
        requests.append({"prompt": text, "picture": picture, "sampling": sampling})
    last = [requests[0] | {"sampling": {"max_tokens": 1}}]  # the step after an answer's last tells that it was drawn
    out = vote_engine.answers(
        tmp_path, tmp_path / "model", [requests, last], runner, str(objects), **vote_engine.GUARDED, **CHUNKS
    )
    tokens = overruled = 0
    for request, answer in zip(requests, out["rounds"][0], strict=True):
        if request["sampling"]["extra_args"] is not None:
            tokens += len(answer["tokens"])
            inputs = processor(images=[request["picture"]], text=[text], return_tensors="pt")
            overruled += others(model, inputs, answer["tokens"])
    assert overruled > 5
    assert out["counted"] == {"vote": [tokens, overruled]}


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_twin_engine_counts_each_of_its_guards_apart(runner: str, tmp_path: Path) -> None:
    where = checkpoint("llava", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(where, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(where)
    asked: list[tuple[str | None, Request]] = []
    for name, method in (("agla", AGLA()), ("vcd", VCD(seed=3)), ("apc", APC(0.4)), (None, None)):
        asked += [(name, request) for request in questions(3, method=method, tokens=20)]
    batches = {"first": [request for _, request in asked], "last": questions(1, method=None, tokens=1)}
    given = {name: [request.for_vllm(processor) for request in batch] for name, batch in batches.items()}
    options = twin_engine.twin(ARCHITECTURE["llava"]) | {"max_num_batched_tokens": 96, "max_num_seqs": 5}
    out = twin_engine.answers(where, options, given, runner)
    expected: dict[str, list[int]] = {}
    for (name, request), answer in zip(asked, out["answers"]["first"], strict=True):
        if name is not None:
            inputs = processor(
                images=request.pictures, text=prompt_of(processor, request), return_tensors="pt",
                add_special_tokens=False,
            )  # fmt: skip
            counts = expected.setdefault(name, [0, 0])
            counts[0] += len(answer["tokens"])
            counts[1] += others(model, inputs, answer["tokens"])
    assert expected["agla"][1] > 5
    assert expected["apc"][1] == 0
    assert out["counted"] == expected
