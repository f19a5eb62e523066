"""The twin engine of vLLM says, token for token, what the transformers engine says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
import twin_engine
from tiny import picture
from twin_models import ARCHITECTURE, Reference, Request, checkpoint, questions

from lvlm_guard.methods import AGLA, APC, VCD

torch.set_num_threads(1)
Batches = dict[str, list[Request]]


class Served:
    """A checkpoint, what the transformers engine answers over it, and engines of vLLM over it."""

    def __init__(self, family: str, where: Path) -> None:
        self.where = checkpoint(family, where)
        self.reference = Reference(self.where)
        self.options = twin_engine.twin(ARCHITECTURE[family])

    def run(self, batches: Batches, runner: str = "v1", fault: str = "", **options: Any) -> dict[str, Any]:
        asked = {name: [r.for_vllm(self.reference.processor) for r in batch] for name, batch in batches.items()}
        return twin_engine.answers(self.where, self.options | options, asked, runner, fault)

    def wrong(self, requests: list[Request], answers: list[dict[str, Any]]) -> list[int]:
        """Which answers are other tokens than the transformers engine's, or have other log-probabilities."""
        found = []
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if request.leaves:
                assert answer is None
                continue
            tokens, logprobs = self.reference.answer(request)
            gaps = [abs(a - b) for a, b in zip(logprobs, answer["logprobs"], strict=True)]
            if tokens != answer["tokens"] or max(gaps) > 1e-3:
                found.append(index)
        return found


def of_each_method() -> list[Request]:
    return [
        request
        for method in (AGLA(), VCD(seed=3), APC(0.4), None)
        for request in questions(3, method=method, tokens=24)
    ]


def at_once() -> list[Request]:
    """32 requests that come and leave at different steps, each with knobs of its own."""
    given: list[Any] = [None, AGLA, VCD, APC]
    found = []
    for index, request in enumerate(questions(32)):
        method = given[index % 4]
        beta = 0.05 + index / 45
        request.method = method and (APC(beta) if method is APC else method(alpha=index / 10, beta=beta))
        request.tokens = 2 + 7 * index % 23
        found.append(request)
    return found


def with_clients_that_leave() -> list[Request]:
    requests = at_once()
    for index in range(3, 32, 4):
        requests[index].leaves = 1 + index // 4
        requests[index].tokens = 40
    return requests


def to_the_limit() -> list[Request]:
    """Prompt and answer fill the context of 512 to the last token."""
    filler = "Is there a dog in the picture, or only its shadow? "
    found = []
    for method in (AGLA(), VCD(), None):
        request = Request((filler * 9)[:420], [picture(5)], method)
        found.append(replace(request, tokens=512 - 64 - 420 - len("USER: \n ASSISTANT:")))
    return found


def on_one_picture() -> list[Request]:
    asked = [AGLA(0, 1), AGLA(0, 0.01), AGLA(0.5, 0.1), AGLA(4, 0.05), VCD(2, 0.2), VCD(noise_step=900), VCD(seed=5)]
    requests = [Request("Is there a dog?", [picture(3)], method) for method in asked]
    return requests + [Request("Is there a dog?", [picture(3)], AGLA(), scores=(s,)) for s in (0.2, 0.5, 0.9)]


def of_two_pictures() -> list[Request]:
    a, b = picture(1), picture(2)
    return [
        Request("What differs?", [a, b], AGLA(), scores=(0.2, 0.9)),
        Request("What differs?", [b, a], AGLA(), scores=(0.2, 0.9)),
        Request("What differs?", [a, a], AGLA(), scores=(0.9, 0.2)),
        Request("What differs?", [a, b], VCD()),
        Request("What differs?", [a, b]),
    ]


BATCHES: Batches = {
    "first": of_each_method(),
    "again": of_each_method(),
    "knobs": on_one_picture(),
    "at once": at_once(),
    "leaving": with_clients_that_leave(),
    "after they left": at_once(),
    "limit": to_the_limit(),
    "one of two": [Request("What differs?", [picture(1)], AGLA(), scores=(0.2,))],
    "two": of_two_pictures(),
    "no picture": [Request("Is there a dog?", [])],
    "sampled": questions(4, method=AGLA(1, 0.3), sampling={"temperature": 1.0, "seed": 7}),
}


COMPARED = [batch for batch in BATCHES if batch != "sampled"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def roomy(llava: Served) -> dict[str, Any]:
    return llava.run(BATCHES)


@pytest.mark.parametrize("batch", COMPARED)
def test_every_answer_is_the_transformers_engines(llava: Served, roomy: dict[str, Any], batch: str) -> None:
    assert llava.wrong(BATCHES[batch], roomy["answers"][batch]) == []


def test_an_answer_from_cached_blocks_read_the_picture_from_them(roomy: dict[str, Any]) -> None:
    assert all(answer["cached"] >= 96 for answer in roomy["answers"]["again"])  # 64 tokens are the picture's
    guarded = roomy["answers"]["first"][:9]  # no two of them see the same two views
    assert all(answer["cached"] < 64 for answer in guarded[:6])


def test_masks_noise_and_knobs_change_the_answers_that_were_compared(roomy: dict[str, Any]) -> None:
    said = [tuple(answer["logprobs"]) for answer in roomy["answers"]["knobs"]]
    assert len(set(said)) == len(said)
    two = [tuple(answer["tokens"]) for answer in roomy["answers"]["two"]]
    assert len(set(two)) >= 4


def test_sampled_tokens_are_plausible(roomy: dict[str, Any]) -> None:
    sampled = [p for answer in roomy["answers"]["sampled"] for p in answer["logprobs"]]
    assert -20 < min(sampled) < -0.1  # a rejected token is 10,000 nats away


def test_each_layer_has_two_caches(roomy: dict[str, Any]) -> None:
    assert roomy["layers"] == 6


def test_prompts_read_in_chunks_give_the_same_answers(llava: Served) -> None:
    requests = of_each_method()
    got = llava.run({"chunks": requests}, max_num_batched_tokens=32, max_num_seqs=4)
    assert llava.wrong(requests, got["answers"]["chunks"]) == []


def test_preempted_requests_give_the_same_answers(llava: Served) -> None:
    requests = of_each_method()
    got = llava.run({"tight": requests}, num_gpu_blocks_override=26)
    assert got["preempted"] > 0
    assert llava.wrong(requests, got["answers"]["tight"]) == []


def of_any_shape() -> Batches:
    shapes = [(40, 40), (120, 60), (60, 130)]
    requests = [
        Request(f"{i}: Is there a dog?", [picture(i, *shape)], method)
        for method in (AGLA(), VCD(), APC(0.3), None)
        for i, shape in enumerate(shapes)
    ]
    a, b = picture(1, 40, 40), picture(2, 60, 30)
    two = [
        Request("What differs?", [a, b], AGLA(), scores=(0.2, 0.9)),
        Request("What differs?", [b, a], VCD()),
        Request("What differs?", [a, b]),
    ]
    return {"first": requests, "again": requests, "two": two, "no picture": [Request("Is there a dog?", [])]}


@pytest.mark.parametrize("family", sorted({*ARCHITECTURE} - {"llava", "gemma3"}))
def test_other_families_give_the_same_answers_of_any_shape(family: str, tmp_path: Path) -> None:
    served, batches = Served(family, tmp_path), of_any_shape()
    got = served.run(batches, max_num_batched_tokens=128, max_num_seqs=8)["answers"]
    assert not any(served.wrong(batch, got[name]) for name, batch in batches.items())
    assert all(answer["cached"] >= 32 for answer in got["again"])
    assert len({tuple(answer["tokens"]) for answer in got["first"]}) >= 6


def test_gemma_3_is_refused_where_attention_reads_pictures_causally(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="reads its pictures both ways, and CPU_ATTN reads all causally"):
        Served("gemma3", tmp_path).run({"none": []})


class Causal:
    """Gemma 3's processor, without what tells the model where its pictures are."""

    def __init__(self, processor: Any) -> None:
        self.plain = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def __call__(self, **given: Any) -> Any:
        made = self.plain(**given)
        made.pop("token_type_ids")
        return made


@pytest.mark.slow
def test_but_for_that_gemma_3_with_its_sliding_windows_gives_the_same_answers(tmp_path: Path) -> None:
    served, batches = Served("gemma3", tmp_path), of_any_shape()
    got = served.run(batches, fault="causal pictures", max_num_batched_tokens=128, max_num_seqs=8)["answers"]
    assert len(served.wrong(batches["first"], got["first"])) > 6  # what is refused above
    served.reference.processor = Causal(served.reference.processor)
    assert not any(served.wrong(batch, got[name]) for name, batch in batches.items())


@pytest.mark.slow
def test_deepstack_of_one_branch_alone_is_found(tmp_path: Path) -> None:
    served, requests = Served("qwen3_vl", tmp_path), of_any_shape()["first"][:3]
    assert served.wrong(requests, served.run({"one": requests}, fault="one stack")["answers"]["one"]) == [0, 1, 2]


@pytest.mark.slow
def test_the_runner_of_cuda_gives_the_same_answers(llava: Served) -> None:
    got = llava.run(BATCHES, runner="v2")
    assert got["runner"] == "vllm.v1.worker.cpu.model_runner"  # a thin layer over V2's; V1's is cpu_model_runner
    for batch in COMPARED:
        assert llava.wrong(BATCHES[batch], got["answers"][batch]) == [], batch


@pytest.mark.slow
@pytest.mark.parametrize("fault", twin_engine.FAULTS)
def test_a_fault_is_found_in_every_answer_that_it_can_touch(llava: Served, fault: str) -> None:
    requests = questions(8, method=AGLA(), tokens=24)
    got = llava.run({"faulty": requests}, fault=fault)
    assert llava.wrong(requests, got["answers"]["faulty"]) == list(range(8))
