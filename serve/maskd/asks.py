"""What the matcher service can be asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["mask", "scores"]

MOST_TEXT = 32_768
"""Characters of a question or a claim; matchers read the first 50 words or fewer."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""Of pictures: those whose headers take no longer than their length says. A TIFF's frames take minutes to follow."""

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder where several workers keep what they count."""


@dataclass(frozen=True)
class Answer:
    """Mask or scores, as `lvlm_guard.serve.wire` packs them, and what the matcher could not look at; "" for nothing."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Ask:
    """A mask for one question, or scores of claims, each once, of a picture's file; equal asks have equal answers."""

    kind: Kind
    digest: bytes
    texts: tuple[str, ...]
    image: bytes = field(compare=False, repr=False)

    @classmethod
    def about(cls, kind: Kind, image: bytes, texts: tuple[str, ...]) -> Ask:
        """Return an ask about a picture's file."""
        return cls(kind, hashlib.blake2b(image, digest_size=20).digest(), texts, image)
