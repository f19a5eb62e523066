"""The words of captions: colours, numbers, kinds of objects, and phrases such as "three red dogs"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.matching.vocabulary import article, plural

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "yellow": (240, 205, 40),
    "green": (50, 165, 60),
    "blue": (50, 95, 225),
    "purple": (150, 60, 190),
    "black": (48, 48, 48),
}
"""Tints, RGB 0-255. No "orange", which names a fruit here, and no white, which bright grounds hide."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MOST = len(NUMBERS) - 1  # of one object in a picture

METAS: dict[str, tuple[str, ...]] = {
    "vehicle": ("car", "bus", "truck", "bicycle", "motorcycle", "train", "airplane", "boat"),
    "animal": ("horse", "cow", "sheep", "bird", "elephant", "zebra", "dog", "cat", "person"),
    "food": ("apple", "banana", "orange", "broccoli", "carrot", "pizza", "cake", "donut", "sandwich", "hotdog"),
    "tableware": ("knife", "spoon", "bowl", "cup", "bottle", "wineglass"),
    "furnishing": ("couch", "tv", "clock", "vase", "plant"),
    "office": ("book", "laptop", "phone", "keyboard", "scissors"),
    "sport": ("kite", "surfboard", "frisbee", "ball", "bat", "racket", "skateboard"),
    "baggage": ("backpack", "suitcase", "handbag", "umbrella"),
}
"""Which objects are of one kind; a category swap stays within one."""

META_OF = {name: meta for meta, names in METAS.items() for name in names}


@dataclass(frozen=True)
class Group:
    """All of one object in a picture: "three red dogs".

    Args:
        name: the object, one of `lvlm_guard.embedded.catalog.CLASSES`.
        count: how many, 1 to 6.
        colour: their tint, one of `COLOURS`; None where they have the drawing's own colours.
    """

    name: str
    count: int
    colour: str | None = None

    def phrase(self, *, number: bool = True, colour: bool = True) -> str:
        """Return how a caption names it: "a red dog", "two dogs"; without its number "dogs", "a dog"."""
        tint = self.colour if colour else None
        words = ([tint] if tint else []) + [self.name if self.count == 1 else plural(self.name)]
        if self.count == 1:
            return f"{article(words[0])} {' '.join(words)}"
        return " ".join([NUMBERS[self.count], *words] if number else words)


def listing(phrases: Sequence[str]) -> str:
    """Return phrases as English lists them: "a dog, two cats and a bus"."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
