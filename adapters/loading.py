"""Any adapter folder of this package, loaded by what lies in it."""

from __future__ import annotations

import json
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.tuned import require_peft
from lvlm_guard.errors import WeightsError
from lvlm_guard.weights import how_to_fetch, read

KINDS = {
    "guard_dual_prompt.json": "lvlm_guard.adapters.retrieval:DualPromptRetriever",
    "guard_ranker.json": "lvlm_guard.adapters.ranker:Ranker",
}
"""The file that marks a folder as an adapter of a kind, and the class whose `from_pretrained(folder)` reads it."""


def load(folder: str | PathLike[str], **options: Any) -> Any:
    """Return what an adapter folder holds, ready for use.

    Args:
        folder: as `save_pretrained` or `lvlm-guard train` wrote it: a `DualPromptRetriever`, a `Ranker`, or a
            folder of PEFT's own, such as a bare prompt adapter or a LoRA, which gives the `PeftModel`.
        options: passed on to the class's `from_pretrained`: `model` for the backbone that the folder does not hold
            (else its config names it), `device`.

    Raises:
        WeightsError: the folder is missing or damaged, holds no adapter, or its backbone can't be had.
    """
    place = Path(folder)
    for marker, where in KINDS.items():
        if (place / marker).is_file():
            module, _, name = where.partition(":")
            return getattr(import_module(module), name).from_pretrained(place, **options)
    if not (place / "adapter_config.json").is_file():
        raise WeightsError(
            f"{str(folder)!r} is no adapter folder: it has neither adapter_config.json nor {' nor '.join(KINDS)}. Give "
            "the folder that save_pretrained or `lvlm-guard train` wrote."
        )
    return _bare(place, **options)


def load_adapter(source: str | PathLike[str], **options: Any) -> Any:
    """Return an adapter by folder, hub id, or one of this package's own.

    Args:
        source: "embedded-dual-prompt", "embedded-ranker", "embedded-clip"; a folder; or a hub id.
        options: as of `load`.

    Raises:
        WeightsError: it can't be had.
    """
    from lvlm_guard.adapters.embedded import ADAPTERS

    name = str(source)
    own = ADAPTERS / name.removeprefix("embedded-")
    if name.startswith("embedded-") and own.is_dir() and not Path(name).is_dir():
        return load(own, **options)
    if isinstance(source, PathLike) or Path(name).is_dir() or "/" not in name:
        return load(source, **options)
    from huggingface_hub import snapshot_download

    folder = read(
        f"The adapter {name!r}",
        name,
        lambda: snapshot_download(name),
        damaged="The folder is incomplete or damaged.",
        absent=how_to_fetch(name, "load_adapter(DIR)"),
    )
    return load(folder, **options)


def _bare(place: Path, model: Any = None, device: str | None = None) -> Any:
    require_peft()
    from peft import PeftModel

    loaded = read(
        f"The adapter {str(place)!r}",
        str(place),
        lambda: PeftModel.from_pretrained(model if model is not None else _backbone(place), str(place)),
        damaged="The folder is incomplete or damaged, or its backbone is another than the one given.",
        absent="Give the folder that save_pretrained wrote.",
    )
    return loaded.eval() if device is None else loaded.eval().to(device)


def _backbone(place: Path) -> Any:
    """Return the model that an adapter's config names, of the class that the config names, else of the checkpoint's."""
    import transformers

    config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    named = config.get("base_model_name_or_path")
    if not named:
        raise WeightsError(
            f"The adapter {str(place)!r} does not say which model it was trained on: give it, load(folder, model=...)."
        )
    kind = (config.get("auto_mapping") or {}).get("base_model_class") or "AutoModel"
    loader = getattr(transformers, kind, transformers.AutoModel)
    return read(
        f"The backbone {named!r}",
        named,
        lambda: loader.from_pretrained(named),
        damaged="The folder is incomplete or damaged.",
        absent=f"{how_to_fetch(named, 'load(folder, model=CLIPModel.from_pretrained(DIR))')}",
    )
