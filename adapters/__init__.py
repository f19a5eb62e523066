"""The adapters room: small trained parts that make a model or a matcher better.

Charter: PEFT tuners, the pairwise CLIP ranker, dual-prompt retrieval, distilling a guard into a LoRA,
their training and recipes, and matchers built on them, registered by entry point. It may import the
core of `lvlm_guard` and peft; the core never imports it, nor do evals and serve.

Importing it registers our tuner with PEFT, so that `PeftModel.from_pretrained` reads its folders too;
`load_adapter` reads any adapter of this package, by name, folder or hub id. Without peft there is the
matcher `clip` alone.
"""

if __name__ != "lvlm_guard.adapters":
    raise ImportError("import lvlm_guard.adapters, not adapters: two copies of its classes would exist")

from importlib.util import find_spec

if find_spec("peft") is not None:
    from lvlm_guard.adapters import prompts as prompts

from lvlm_guard.adapters.loading import load, load_adapter

__all__ = ["load", "load_adapter"]
