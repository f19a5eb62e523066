"""Bounded memory of what was computed, keyed by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

from lvlm_guard.images import Held

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def digest(image: Image.Image) -> bytes:
    """Return a key of the picture's content: its mode, size and pixels; of the guard's own pictures computed once."""
    if isinstance(image, Held) and image.digest is not None:
        return image.digest
    head = f"{image.mode} {image.width} {image.height} ".encode()
    made = hashlib.blake2b(image.tobytes(), digest_size=16, key=head[:64]).digest()
    if isinstance(image, Held):
        image.digest = made
    return made


class Recent(Generic[Key, Value]):
    """The most recently used values, up to a total size. Safe for threads.

    Args:
        capacity: bound of the summed sizes, in the unit of `put` (bytes, mostly).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value, or None where it is not held (any more)."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Key, value: Value, size: int = 1) -> None:
        """Hold a value; the least recently used ones go where the sum would exceed the capacity."""
        with self._lock:
            if key in self._held:
                self._size -= self._held.pop(key)[1]
            if size <= self.capacity:
                self._held[key] = (value, size)
                self._size += size
            while self._size > self.capacity:
                self._size -= self._held.popitem(last=False)[1][1]

    def filled(
        self,
        keys: Iterable[Key],
        make: Callable[[list[Key]], Iterable[Value]],
        size: Callable[[Value], int] = lambda _: 1,
    ) -> dict[Key, Value]:
        """Return the values of keys; `make` gives those that are not held, each once, to be held from then on."""
        wanted = dict.fromkeys(keys)
        found = {key: value for key in wanted if (value := self.get(key)) is not None}
        missing = [key for key in wanted if key not in found]
        for key, value in zip(missing, make(missing) if missing else (), strict=True):
            found[key] = value
            self.put(key, value, size(value))
        return found

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()
            self._size = 0
