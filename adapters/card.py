"""The JSON file that says, beside PEFT's own, what an adapter's folder needs to be used rightly."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lvlm_guard.errors import GuardError, WeightsError
from lvlm_guard.files import whole

if TYPE_CHECKING:
    from peft import PeftModel


class Card:
    """A frozen dataclass that lies in a file beside PEFT's own."""

    file: ClassVar[str]
    format: ClassVar[int] = 1
    kind: ClassVar[str]
    """What the folder is of, as `lvlm-guard train` calls it."""

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        """Return the card from what its file holds."""
        return cls(**told)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; return its path."""
        own: Any = self  # a dataclass in every subclass, which no type can say
        path = Path(folder) / self.file
        with whole(path) as part:
            part.write_text(
                json.dumps({"format": self.format, **asdict(own)}, indent=2, allow_nan=False) + "\n", "utf-8"
            )
        return path

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the file of a folder.

        Raises:
            WeightsError: it is missing or damaged, or of another release.
        """
        path = Path(folder) / cls.file
        own: Any = cls
        try:
            told: dict[str, Any] = json.loads(path.read_text("utf-8"))
            form = told.pop("format")
            unknown = set(told) - {known.name for known in fields(own)}
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


def pair(value: Any) -> tuple[float, float] | None:
    """Return two numbers that JSON holds as a list, or None."""
    if value is None:
        return None
    a, b = value
    return float(a), float(b)
