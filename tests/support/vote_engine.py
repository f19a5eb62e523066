"""A vLLM engine in a process of its own that answers the requests of a job: `python vote_engine.py JOB OUT`.

The process decides at its start which of vLLM's model runners it has, and ends with all that the engine held.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
OPTIONS = {
    "dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256, "max_num_seqs": 32,
    "max_num_batched_tokens": 1024, "kv_cache_memory_bytes": 48 << 20, "disable_log_stats": False,
    "generation_config": "vllm", "logprobs_mode": "processed_logprobs", "limit_mm_per_prompt": {"image": 1},
}  # fmt: skip
GUARDED = {"logits_processors": ["lvlm_guard.serve.vote.processor:VoteProcessor"]}


def answers(
    folder: Path,
    model: Path,
    rounds: list[list[dict[str, Any]]],
    runner: str = "v1",
    objects: str = "coco",
    **options: Any,
) -> dict[str, Any]:
    """Return what an engine says to several rounds of requests, each round all at once.

    Args:
        folder: for the job and the result.
        model: a checkpoint.
        rounds: requests with "prompt", "picture" and "sampling" (arguments of `SamplingParams`).
        runner: "v1" or "v2".
        objects: what `LVLM_GUARD_OBJECTS` says.
        options: of `LLM`, over `OPTIONS`.

    Returns:
        "rounds": per request "tokens", "logprobs", "cached" or "refused"; "runner", "preempted", "seconds" a round,
        "counted" of guarded tokens.
    """
    job, out = folder / "job.pickle", folder / "out.json"
    out.unlink(missing_ok=True)
    job.write_bytes(pickle.dumps({"model": str(model), "rounds": rounds, "options": OPTIONS | options}))
    environment = os.environ | ENVIRONMENT | {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2"))}
    environment["LVLM_GUARD_OBJECTS"] = objects
    done = subprocess.run(
        [sys.executable, __file__, job, out], env=environment, capture_output=True, text=True, timeout=280
    )
    if not out.exists():
        raise AssertionError(f"The engine failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return json.loads(out.read_text())


def _let_v2_run_on_a_cpu() -> None:
    """Run the V2 runner's kernels in Triton's interpreter: the published Triton has no driver for CPUs."""
    from types import SimpleNamespace

    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver)


def main(job: Path, out: Path) -> None:
    if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
        _let_v2_run_on_a_cpu()
    from token_counts import counted
    from vllm import LLM, SamplingParams
    from vllm.exceptions import VLLMValidationError

    task = pickle.loads(job.read_bytes())
    llm = LLM(model=task["model"], **task["options"])
    rounds, seconds = [], []
    for requests in task["rounds"]:
        said: list[dict[str, Any]] = [{} for _ in requests]
        taken, prompts, params = [], [], []
        for i, request in enumerate(requests):
            sampling = SamplingParams(**{"temperature": 0, "logprobs": 0, "detokenize": False} | request["sampling"])
            prompt = {"prompt": request["prompt"], "multi_modal_data": {"image": request["picture"]}}
            if request.get("bad"):
                try:
                    llm.generate([prompt], [sampling], use_tqdm=False)
                except VLLMValidationError as error:
                    said[i] = {"refused": str(error)}
            else:
                taken.append(i)
                prompts.append(prompt)
                params.append(sampling)
        begun = time.perf_counter()
        for i, output in zip(taken, llm.generate(prompts, params, use_tqdm=False), strict=True):
            one = output.outputs[0]
            tokens = list(one.token_ids)
            said[i] = {
                "prompt": list(output.prompt_token_ids),
                "tokens": tokens,
                "logprobs": [step[token].logprob for token, step in zip(tokens, one.logprobs, strict=True)],
                "cached": output.num_cached_tokens or 0,
            }
        seconds.append(time.perf_counter() - begun)
        rounds.append(said)
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    result = {
        "rounds": rounds,
        "seconds": seconds,
        "runner": type(executor.driver_worker.worker.model_runner).__module__,
        "preempted": sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"),
    }
    if task["options"].get("logits_processors"):
        result["counted"] = counted()
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
