"""What the matcher service can be asked, and how much of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from lvlm_guard.images import MAX_PIXELS

Kind = Literal["mask", "scores"]

MOST_TEXT = 32_768
"""Characters of a question or a claim; matchers read the first 50 words or fewer."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""Of pictures: those whose headers take no longer than their length says. A TIFF's frames take minutes to follow."""

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: the folder where several workers keep what they count."""


@dataclass(frozen=True)
class Limits:
    """How much the service takes on.

    Args:
        queue: requests that wait; more are answered 503.
        batch: requests matched at once.
        deadline: seconds from a request's arrival to its answer; later it is answered 503.
        body: bytes of one request.
        held: bytes of all requests that are being read, wait, or are being answered.
        pixels: of one picture, and of the pictures that are matched at once.
        cache: bytes of remembered answers.
        reading: seconds that a client may take to send a request.
        failures: batches that the matcher may fail one after another; then the process ends, to be started anew.
    """

    queue: int = 64
    batch: int = 16
    deadline: float = 10.0
    body: int = 32 << 20
    held: int = 256 << 20
    pixels: int = MAX_PIXELS
    cache: int = 64 << 20
    reading: float = 10.0
    failures: int = 5


@dataclass(frozen=True)
class Answer:
    """What was found out.

    Args:
        text: mask or scores, as `lvlm_guard.serve.wire` packs them.
        note: what the matcher could not look at; "" for nothing.
    """

    text: str
    note: str = ""


@dataclass(frozen=True)
class Ask:
    """One thing to find out; equal asks have equal answers.

    Args:
        kind: a mask for one text, or the scores of claims.
        digest: of the picture's file.
        texts: the question alone, or the claims, each once.
        image: the picture's file.
    """

    kind: Kind
    digest: bytes
    texts: tuple[str, ...]
    image: bytes = field(compare=False, repr=False)

    @classmethod
    def about(cls, kind: Kind, image: bytes, texts: tuple[str, ...]) -> Ask:
        """Return an ask about a picture's file."""
        return cls(kind, hashlib.blake2b(image, digest_size=20).digest(), texts, image)
