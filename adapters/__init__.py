"""The adapters room: small trained parts that make a model or a matcher better.

Charter: PEFT tuners, the pairwise CLIP ranker, dual-prompt retrieval, distilling a guard into a LoRA,
their training and recipes, and matchers built on them, registered by entry point. It may import the
core of `lvlm_guard` and peft; the core never imports it, nor do evals and serve.

Importing it registers our tuner with PEFT, so that `PeftModel.from_pretrained` reads its folders too: at once where
peft is loaded, else as soon as it is, so that settings can be read without it. `load_adapter` reads any adapter of this
package, by name, folder or hub id. Without peft there is the matcher `clip` alone.
"""

if __name__ != "lvlm_guard.adapters":
    raise ImportError("import lvlm_guard.adapters, not adapters: two copies of its classes would exist")

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_guard.adapters.loading import load, load_adapter

TUNER = "lvlm_guard.adapters.prompts"


class _WithPeft(MetaPathFinder):
    """Registers our tuner behind the import of peft."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "peft":
            return None
        others = [other for other in sys.meta_path if other is not self and hasattr(other, "find_spec")]
        spec = next(filter(None, (other.find_spec(fullname, path, target) for other in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_both(module: Any) -> None:
                run(module)
                try:
                    import_module(TUNER)
                except RuntimeError:  # a deadlock, where another thread is at that already, and waits for peft
                    if TUNER not in sys.modules:
                        raise

            spec.loader.exec_module = run_both  # type: ignore[method-assign]
        return spec


if sys.modules.get("peft") is not None:
    import_module(TUNER)
else:
    sys.meta_path.insert(0, _WithPeft())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lvlm_guard.adapters.loading"), name)


__all__ = ["load", "load_adapter"]
