"""Adapter folders: the package's own, the card beside PEFT's files, and any of them loaded by what lies in it.

Models that PEFT wraps are told apart without peft here: a CLIP as it is needs none.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

from lvlm_guard.errors import GuardError, MissingExtraError, UnsupportedModelError, WeightsError
from lvlm_guard.files import whole
from lvlm_guard.weights import how_to_fetch, read

if TYPE_CHECKING:
    from peft import PeftModel

TINY = Path(__file__).parent / "clip" / "tiny"
"""The embedded tiny CLIP: a real `CLIPModel` with processor, trained on the embedded world in minutes. It knows objects
well, colours and numbers weakly, and hardly which colour belongs to which object, as CLIP does: that is the room
adapters have. `python -m embedded_training.clip` trains it again, `... .clip_accept` measures it."""

ADAPTERS = Path(__file__).parent / "embedded"
"""The adapters that the embedded model comes with, trained on the embedded world by the commands in their reports:
"embedded-dual-prompt", "embedded-ranker", and "embedded-clip", which is the tiny CLIP as it is, calibrated."""


def is_tuned(model: Any) -> TypeGuard[PeftModel]:
    """Tell whether PEFT wraps a model."""
    peft = sys.modules.get("peft")  # who has such a model has imported it
    return peft is not None and isinstance(model, peft.PeftModel)


def require_peft() -> None:
    """Raise `MissingExtraError` where peft can't be imported."""
    try:
        import_module("peft")
    except ImportError as error:
        raise MissingExtraError(
            f"This adapter needs peft, which can't be imported ({error}). Install it: pip install 'lvlm-guard[train]'."
        ) from error


class Card:
    """Of frozen dataclasses that lie in a file beside PEFT's own."""

    file: ClassVar[str]
    format: ClassVar[int] = 1
    kind: ClassVar[str]
    """What the folder is of, as `lvlm-guard train` calls it."""
    backbone: str
    image_width: int
    text_width: int

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        """Return the card from what its file holds."""
        return cls(**told)

    def require(self, image_width: int, text_width: int, name: str) -> None:
        """Raise `UnsupportedModelError` where a CLIP's tokens are not of the widths that the adapter was trained on."""
        if (image_width, text_width) != (self.image_width, self.text_width):
            raise UnsupportedModelError(
                f"The {self.kind} was trained on {self.backbone!r}, with image tokens of width {self.image_width} and "
                f"text tokens of width {self.text_width}, but {name!r} has {image_width} and {text_width}. Load it on "
                f"{self.backbone!r}, or train one for {name!r}."
            )

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; return its path."""
        path, own = Path(folder) / self.file, {"format": self.format, **asdict(self)}  # type: ignore[call-overload]
        with whole(path) as part:
            part.write_text(json.dumps(own, indent=2, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the file of a folder; raises `WeightsError` where it is missing, damaged or of another release."""
        path = Path(folder) / cls.file
        try:
            told: dict[str, Any] = json.loads(path.read_text("utf-8"))
            form = told.pop("format")
            unknown = set(told) - {known.name for known in fields(cls)}  # type: ignore[arg-type]
            if form != cls.format or unknown:
                raise WeightsError(
                    f"{path} is of format {form} with the unknown fields {sorted(unknown)}; this release reads format "
                    f"{cls.format}. Update lvlm-guard, or train the adapter again."
                )
            return cls._made(told)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{str(folder)!r} is no folder of a {cls.kind}: {cls.file} is missing. Give the folder that "
                f"`lvlm-guard train {cls.kind}` wrote."
            ) from error
        except WeightsError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GuardError) as error:
            raise WeightsError(
                f"{path} is damaged ({type(error).__name__}: {error}). Copy the folder again, or train again."
            ) from error


def write_adapter(model: PeftModel, backbone: str, folder: str | os.PathLike[str]) -> None:
    """Write PEFT's own files, which name the backbone as the card does: a path of this machine helps nobody else."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = backbone
    # PEFT would ask the hub whether embeddings changed; those of a CLIP never do here
    model.save_pretrained(str(folder), save_embedding_layers=False)


def with_adapter(model: Any, folder: str | os.PathLike[str], what: str, trainable: bool = False) -> PeftModel:
    """Return a model with the adapter that PEFT's files in a folder, of a `what`, hold; trainable if training goes on.

    Raises:
        MissingExtraError: peft is not installed.
        WeightsError: the folder is damaged, or of another model.
    """
    require_peft()
    from peft import PeftModel

    place = Path(folder)

    def load() -> PeftModel:
        if not (place / "adapter_model.safetensors").is_file():
            raise FileNotFoundError("adapter_model.safetensors is missing")
        return PeftModel.from_pretrained(model, str(place), is_trainable=trainable)

    damaged = "The folder is incomplete or damaged, or its backbone is another: copy it again, or train again."
    absent = "Give the folder that save_pretrained or `lvlm-guard train` wrote."
    return read(f"The {what} {str(folder)!r}", str(place), load, damaged=damaged, absent=absent)


def pair(value: Any) -> tuple[float, float] | None:
    """Return two numbers that JSON holds as a list, or None."""
    if value is None:
        return None
    a, b = value
    return float(a), float(b)


KINDS = {
    "guard_dual_prompt.json": "lvlm_guard.adapters.retrieval:DualPromptRetriever",
    "guard_ranker.json": "lvlm_guard.adapters.ranker.ranker:Ranker",
}
"""The file that marks a folder as an adapter of a kind, and the class whose `from_pretrained(folder)` reads it."""


def load(folder: str | PathLike[str], **options: Any) -> Any:
    """Return what an adapter folder holds, ready for use: a `DualPromptRetriever`, a `Ranker`, or a `PeftModel`.

    Args:
        folder: as `save_pretrained` or `lvlm-guard train` wrote it, or of PEFT's own, such as a LoRA.
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
    """Return an adapter by its folder, its hub id, or a name of this package's own; options and errors as of `load`."""
    name, own = str(source), ADAPTERS / str(source).removeprefix("embedded-")
    if name.startswith("embedded-") and own.is_dir() and not Path(name).is_dir():
        return load(own, **options)
    if isinstance(source, PathLike) or Path(name).is_dir() or "/" not in name:
        return load(source, **options)
    from huggingface_hub import snapshot_download

    absent = how_to_fetch(name, "load_adapter(DIR)")
    return load(read(f"The adapter {name!r}", name, lambda: snapshot_download(name), absent=absent), **options)


def _bare(place: Path, model: Any = None, device: str | None = None) -> Any:
    """Return the `PeftModel` of PEFT's own folder, on the model given, else on the one that its config names."""
    import transformers

    if model is None:
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        named = config.get("base_model_name_or_path")
        if not named:
            told = f"The adapter {str(place)!r} does not say which model it was trained on"
            raise WeightsError(f"{told}: give it, load(folder, model=...).")
        kind = (config.get("auto_mapping") or {}).get("base_model_class") or "AutoModel"
        loader = getattr(transformers, kind, transformers.AutoModel)
        absent = how_to_fetch(named, "load(folder, model=CLIPModel.from_pretrained(DIR))")
        model = read(f"The backbone {named!r}", named, lambda: loader.from_pretrained(named), absent=absent)
    loaded = with_adapter(model, place, "adapter").eval()
    return loaded if device is None else loaded.to(device)
