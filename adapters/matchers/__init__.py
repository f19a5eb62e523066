"""Matchers that stand on a CLIP: as it is, tuned for retrieval, or to order and count; and on a SigLIP.

They are subclasses of `lvlm_guard.matching.Matcher`, so that AGLA cuts its view by them, `vote` asks them, and a
verifier judges by them. A name alone stands for the adapter that a model's config names, and for the embedded model for
the adapters of this package; else a folder is given: `methods.AGLA(matcher="my-adapter")`. Here is what they share:
where the adapter of a name lies, what a question claims, and one caller at a time.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.adapters.retrieval.claims import TEMPLATE
from lvlm_guard.errors import TextError, WeightsError
from lvlm_guard.matching.asking import THERE
from lvlm_guard.matching.loading import source_of
from lvlm_guard.matching.match import Matcher, Remembering, device_of, unaffected
from lvlm_guard.matching.vocabulary import Vocabulary
from lvlm_guard.verify.check import mentions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterMatcher(Remembering):
    """A matcher whose model one thread at a time may use."""

    name: ClassVar[str]
    otherwise: ClassVar[str | None] = None
    """The folder or hub id that the name stands for with any model."""
    template = TEMPLATE

    def __init__(self, model: Any, version: str) -> None:
        super().__init__(model, version)
        self._lock = RLock()  # hooks and prompts are states of the model

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> Self:
        """Load a matcher.

        Args:
            source: a folder, a hub id, or "embedded" for this package's own.
            device: where it runs; None is the CPU.

        Raises:
            WeightsError: it can't be had.
            UnsupportedModelError: it is of another kind.
        """
        place = str(ADAPTERS / cls.name if str(source) == "embedded" else source)
        with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
            return cls._read(place, torch.device(device or "cpu"))

    @classmethod
    @abstractmethod
    def _read(cls, place: str, device: torch.device) -> Self:
        """Return the matcher of a folder or hub id."""

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load what the name stands for with a model; raises `WeightsError` where nothing says it."""
        return cls.from_pretrained(place_for(cls.name, model, cls.otherwise), device=device_of(model))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Shut out other threads, and what the caller set for his own model."""
        with self._lock, unaffected(self.device):
            yield


def digested(told: str, model: Any, wanted: Callable[[str], bool]) -> Any:
    """Return a digest, to be gone on with, of what is told and of a model's tensors whose names are wanted."""
    made = hashlib.blake2b(told.encode(), digest_size=6)
    for name, value in sorted(model.state_dict().items()):
        if wanted(name):
            made.update(value.detach().float().cpu().numpy().tobytes())
    return made


def required(text: str) -> str:
    """Return a text to match with; raises `TextError` where it is empty."""
    if not text.strip():
        raise TextError("The text to match the picture with is empty. Ask a question, or give a caption.")
    return text


def place_for(name: str, model: Any, otherwise: str | None = None) -> str:
    """Return the folder or hub id that a matcher's name stands for with a model that it will guard, or None.

    A model's config may say it, `lvlm_guard: {"dual-prompt": "owner/adapter"}`, also as a folder beside the model; the
    embedded model has those of this package; `otherwise` is for any other. Raises `WeightsError` where nothing says it.
    """
    found = source_of(name, model, lambda: str(ADAPTERS / name)) or otherwise
    if found is not None:
        return found
    raise WeightsError(
        f"Which {name} adapter is meant? Train one, `lvlm-guard train {name} --data ... --out DIR`, and give its "
        f"folder in the place of the name: matcher=DIR. The embedded model has one of its own, `embedded-{name}`."
    )


def caption_of(text: str) -> str:
    """Return a text as CLIP reads it: "is there a dog in the image?" becomes "a photo of a dog", others stay."""
    found = THERE.fullmatch(required(text))
    return f"a photo of {found['what']}" if found and found["what"] else text


def object_of(text: str) -> str | None:
    """Return the object whose presence a text asks for or states, and nothing else; None where it says more or less."""
    found = THERE.fullmatch(required(text))
    return (found["name"] or found["shown"]).lower() if found else None


def objects_in(text: str, vocabulary: Vocabulary) -> list[str]:
    """Return the objects that a text is about, each once: what it asks for, else what it names of a vocabulary."""
    asked = object_of(text)
    return [asked] if asked else list(dict.fromkeys(mention.object for mention in mentions(text, vocabulary)))
