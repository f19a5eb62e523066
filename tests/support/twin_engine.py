"""One vLLM engine in a process of its own: `python twin_engine.py JOB OUT`; `answers()` starts it.

The engine itself runs in that process, so that a fault can be put into it and its caches counted.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lvlm_guard.serve.engine.plugin import PROCESSOR, twin_of

OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 512, "max_num_seqs": 32,
    "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 64 << 20, "disable_log_stats": False,
    "generation_config": "vllm", "logprobs_mode": "processed_logprobs",
    "limit_mm_per_prompt": {"image": 2, "video": 0},
}  # fmt: skip
QUIET = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


def twin(architecture: str) -> dict[str, Any]:
    """Options of a twin engine."""
    return {"hf_overrides": {"architectures": [twin_of(architecture)]}, "logits_processors": [PROCESSOR]}


def answers(
    model: Path, options: dict[str, Any], batches: dict[str, list[dict[str, Any]]], runner: str = "v1", fault: str = ""
) -> dict[str, Any]:
    """Run batches of requests on one engine, one batch after the other.

    Args:
        model: checkpoint.
        options: vLLM's, over `OPTIONS`.
        batches: name -> requests (`Request.for_vllm`), given to the engine together.
        runner: "v1", or "v2" (CUDA's, here in Triton's interpreter).
        fault: what is broken on purpose (`CHANGES`).

    Returns:
        "answers": name -> [{"tokens", "logprobs", "cached"}, or None where the client left], "layers" with a KV cache,
        "blocks", "preempted", "counted" of guarded tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job"), Path(folder, "out")
        job.write_bytes(pickle.dumps({"model": str(model), "options": OPTIONS | options, "batches": batches}))
        chosen = {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2")), "TWIN_FAULT": fault}
        done = subprocess.run(
            [sys.executable, __file__, job, out], env=os.environ | QUIET | chosen, capture_output=True, text=True
        )
        if not out.exists():
            raise RuntimeError(f"The engine failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _one_cache() -> None:
    """Both branches read and write the global branch's cache."""
    import torch
    from vllm.model_executor.layers.attention import Attention

    from lvlm_guard.serve.engine.twin import TwinAttention

    def forward(self: Any, query: Any, key: Any, value: Any, *args: Any) -> Any:
        n = len(query) // 2
        second = Attention.forward(self, query[n:], key[n:], value[n:], *args)
        return torch.cat([Attention.forward(self, query[:n], key[:n], value[:n], *args), second])

    TwinAttention.forward = forward


def _one_picture() -> None:
    """The second branch sees the whole picture."""
    from lvlm_guard.serve.engine.branches import TwoBranches

    honest = TwoBranches.embed_multimodal
    TwoBranches.embed_multimodal = lambda self, pixel_values_second=None, **rest: honest(self, **rest)


def _next_row() -> None:
    """Each request gets its neighbour's second branch."""
    from lvlm_guard.serve.engine.handover import Handover

    honest = Handover.take
    Handover.take = lambda self, rows: honest(self, rows).roll(1, 0)


def _no_cut() -> None:
    """Every token is plausible."""
    import torch

    from lvlm_guard.engine.method import Step

    Step.plausible = lambda self, beta: torch.ones_like(self.logits, dtype=torch.bool)


def _causal_pictures() -> None:
    """Let a CPU read pictures causally in a model that reads them both ways."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    CPUAttentionBackend.supports_mm_prefix = classmethod(lambda cls: True)


def _one_stack() -> None:
    """The second branch gets no deepstack of its own."""
    from lvlm_guard.serve.engine.families import DeepBranches

    honest = DeepBranches.__init__

    def build(self: Any, *, vllm_config: Any, prefix: str = "") -> None:  # vLLM reads the signature
        honest(self, vllm_config=vllm_config, prefix=prefix)
        self._levels[1] = self._levels[0]

    DeepBranches.__init__ = build


FAULTS = {"one cache": _one_cache, "one picture": _one_picture, "next row": _next_row, "no cut": _no_cut}
"""What can be broken in LLaVA-1.5's twin."""

CHANGES = FAULTS | {"one stack": _one_stack, "causal pictures": _causal_pictures}


def _allow_v2() -> None:
    """Run V2's kernels in Triton's interpreter: the published Triton has no driver for a CPU."""
    from types import SimpleNamespace

    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends

    triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def _answered(engine: Any, requests: list[dict[str, Any]], parameters: list[Any]) -> list[dict[str, Any] | None]:
    """Run requests together; one whose client leaves after some steps ("leaves") has no answer."""
    for index, (request, given) in enumerate(zip(requests, parameters, strict=True)):
        engine.add_request(f"request {index}", request["prompt"], given)
    found: list[dict[str, Any] | None] = [None] * len(requests)
    steps = 0
    while engine.has_unfinished_requests():
        for one in engine.step():
            if one.finished:
                made = one.outputs[0]
                chosen = zip(made.token_ids, made.logprobs, strict=True)
                found[int(one.request_id.split()[1])] = {
                    "tokens": list(made.token_ids),
                    "logprobs": [step[token].logprob for token, step in chosen],
                    "cached": one.num_cached_tokens or 0,
                }
        steps += 1
        gone = [f"request {index}" for index, request in enumerate(requests) if request["leaves"] == steps]
        if gone:
            engine.abort_request(gone)
    return found


def main(job: Path, out: Path) -> None:
    """Answer a job."""
    if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
        _allow_v2()
    if fault := os.environ["TWIN_FAULT"]:
        CHANGES[fault]()
    from token_counts import counted
    from vllm import LLM, SamplingParams

    task = pickle.loads(job.read_bytes())
    llm = LLM(model=task["model"], **task["options"])
    found = {}
    for name, requests in task["batches"].items():
        parameters = [
            SamplingParams(
                **{"ignore_eos": True, **request["sampling"]}, max_tokens=request["tokens"], logprobs=0,
                extra_args=request["extra"], detokenize=False,
            )
            for request in requests
        ]  # fmt: skip
        found[name] = _answered(llm.llm_engine, requests, parameters)
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    about = {
        "answers": found,
        "runner": type(runner).__module__,
        "layers": len(runner.kv_caches),
        "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
        "preempted": sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"),
        "counted": counted(),
    }
    out.write_text(json.dumps(about))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
