"""The adapters room: small trained parts that make a model or a matcher better.

Charter: PEFT tuners, the pairwise CLIP ranker, dual-prompt retrieval, distilling a guard into a LoRA,
their training and recipes, and matchers built on them, registered by entry point. It may import the
core of `lvlm_guard` and peft; the core never imports it, nor do evals and serve.
"""

if __name__ != "lvlm_guard.adapters":
    raise ImportError("import lvlm_guard.adapters, not adapters: two copies of its classes would exist")
