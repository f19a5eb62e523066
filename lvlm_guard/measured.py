"""Methods that need statistics of the model, gathered beforehand on pictures, and the file that these lie in.

`lvlm-guard calibrate` (`lvlm_guard.calibration`) drives a method's `observe` and `conclude` over a folder of pictures
and writes one safetensors file, whose metadata say of which method and model it is. In traces and reports it goes by a
digest of its content.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lvlm_guard.engine.method import Steering
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import KnobError, UnsupportedModelError, WeightsError
from lvlm_guard.files import whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.calibration import Subject
    from lvlm_guard.engine.call import Call

FORMAT = "lvlm-guard statistics, 1"


def identity(model: Any) -> dict[str, str]:
    """Return what statistics must agree on with a model: class, layers, hidden size, a digest of its shapes."""
    config, text = model.config, model.config.get_text_config()
    parts = (
        (config, ("model_type",)),
        (text, ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")),
        (getattr(config, "vision_config", None), ("hidden_size", "num_hidden_layers", "image_size", "patch_size")),
    )
    told = json.dumps([str(getattr(part, name, None)) for part, names in parts for name in names])
    return {
        "model": plain_class(model).__name__,
        "layers": str(text.num_hidden_layers),
        "hidden_size": str(text.hidden_size),
        "config": hashlib.sha256(told.encode()).hexdigest()[:12],
    }


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was gathered for a method on one model."""

    tensors: Mapping[str, Tensor]  # by name, as the method's `conclude` gave them
    told: Mapping[str, str]  # of which method, model, pictures and versions
    name: str = "statistics"  # of the file

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the content."""
        content = hashlib.sha256(json.dumps(sorted(self.told.items())).encode())
        for name, tensor in sorted(self.tensors.items()):
            content.update(name.encode() + str(tensor.dtype).encode() + tensor.contiguous().numpy().tobytes())
        return content.hexdigest()[:12]

    @property
    def version(self) -> str:
        """Name and digest."""
        return f"{self.name}:{self.digest}"

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        with whole(path) as part:
            kept = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
            save_file(kept, part, {"format": FORMAT} | dict(self.told))

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """Read a file; raises `WeightsError` where it is damaged, not there, or none of `lvlm-guard calibrate`."""
        try:
            stat = path.stat()
            return _read(path, stat.st_mtime_ns, stat.st_size)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"The statistics {str(path)!r} can't be read ({error}). Give a file of `lvlm-guard calibrate`, or "
                "write it again by the same command."
            ) from error

    def check(self, method: str, model: Any) -> None:
        """Raise `KnobError` where these are of another method, `UnsupportedModelError` where of another model."""
        if self.told.get("method") != method:
            raise KnobError(
                f"{self.name} holds statistics for {self.told.get('method')!r}, not for {method!r}: {_how(method)}"
            )
        own = identity(model)
        if any(self.told.get(key) != value for key, value in own.items()):
            theirs, ours = (
                f"{each.get('model')} with {each.get('layers')} layers of {each.get('hidden_size')} "
                f"(shapes {each.get('config')})"
                for each in (self.told, own)
            )
            raise UnsupportedModelError(f"{self.name} was gathered on a {theirs}; this is a {ours}. {_how(method)}")


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> Statistics:
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
        if told.pop("format", None) != FORMAT:
            raise WeightsError(f"{str(path)!r} holds no statistics of `lvlm-guard calibrate`, or of another release.")
        return Statistics({name: file.get_tensor(name) for name in file.keys()}, told, path.name)  # noqa: SIM118


def _how(method: str) -> str:
    return (
        f"Gather them on pictures of your own: lvlm-guard calibrate {method} --images FOLDER --model ID "
        f"--out {method}.safetensors, and give the file: guard(model, processor, {method!r}, "
        f"statistics='{method}.safetensors'); on the command line --knob statistics={method}.safetensors, of eval run "
        f"--knob {method}.statistics={method}.safetensors."
    )


def paired(values: Tensor, at: Tensor, kinds: Tensor, fewest: int) -> tuple[Tensor, int]:
    """Return the mean of two kinds of mentions, weighed so that both stand as far into their answers.

    Places are compared within a sixth of their distance from the answer's start, each as often as it has pairs.

    Args:
        values: of each mention, [m, ...].
        at: its token in the answer, 1 or more, [m].
        kinds: which mentions are of which kind, [2, m] bool.
        fewest: pairs that are needed; raises `KnobError` where there are fewer.

    Returns:
        The means, [2, ...], and how many pairs they rest on.
    """
    bins = (4 * at.log2()).long()
    here = (bins == bins.unique()[:, None])[:, None] & kinds  # [places, 2, m]
    counts = here.sum(-1)
    pairs = counts.amin(-1)
    total = int(pairs.sum())
    if total < fewest:
        first, second = kinds.sum(-1).tolist()
        raise KnobError(
            f"The captions name {first} objects that are there and {second} that are not, {total} of each as far into "
            f"their captions as one of the other; {fewest} are needed. Add pictures to the folder (what was gathered "
            "is kept), or judge by another --matcher or --objects, with --start-over."
        )
    means = here.float() @ values.flatten(1) / counts.clamp(min=1)[..., None]  # [places, 2, ...]
    return (means * (pairs / total)[:, None, None]).sum(0).view(2, *values.shape[1:]), total


class Measured(Steering):
    """A steering method that needs statistics; subclasses are dataclasses with a field `statistics`, at first None."""

    needs_statistics: ClassVar[bool] = True
    wanted: ClassVar[int] = 100  # pictures that the paper took, or that are enough
    least: ClassVar[int] = 8  # pictures below which nothing is concluded
    statistics: str | Path | Statistics | None

    @classmethod
    @abstractmethod
    def observe(cls, subject: Subject, picture: Image) -> dict[str, Tensor]:
        """Return what one picture tells of the model."""

    @classmethod
    @abstractmethod
    def conclude(cls, observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the statistics of all pictures; raises `KnobError` where they are too few."""

    @classmethod
    def summary(cls, found: Mapping[str, Tensor]) -> list[str]:
        """Return sentences that a user should read of the statistics."""
        return []

    def measured(self) -> Statistics:
        """Return the statistics; raises `KnobError` where none are given, and as `Statistics.read` does."""
        given = self.statistics
        if given is None:
            raise KnobError(f"{self.name} needs statistics of this model. {_how(self.name)}")
        return given if isinstance(given, Statistics) else Statistics.read(Path(given))

    def ready(self) -> None:
        """Raise where there are no statistics: see `measured`."""
        self.measured()

    def check_model(self, model: Any) -> None:
        """Raise where there are no statistics of this model: see `measured` and `Statistics.check`."""
        self.measured().check(self.name, model)

    def check(self, call: Call) -> None:
        """As `check_model`: a call may bring a method of its own."""
        self.check_model(call.model)

    def knobs(self) -> dict[str, Any]:
        """Return the knobs, the statistics by name and digest of the file."""
        return super().knobs() | {"statistics": None if self.statistics is None else self.measured().version}
