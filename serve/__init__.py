"""The serving room: guarded models behind an OpenAI-compatible endpoint.

Charter: the vLLM plug-in, the mask service, the front before them, and what they need to start,
be watched and be measured. It may import the core of `lvlm_guard` and vllm; the core never imports it,
nor do adapters and evals.
"""

if __name__ != "lvlm_guard.serve":
    raise ImportError("import lvlm_guard.serve, not serve: two copies of its classes would exist")
