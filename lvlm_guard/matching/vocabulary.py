"""Which objects a matcher may be asked about, and the words that name them.

Default: the 80 COCO categories with the synonyms of the CHAIR metric (`data/coco_synonyms.txt`, from
LisaAnne/Hallucination at 6e4d33c, published with arXiv:1809.02156). A user's list has one object a line
or entry: its name, then any synonyms after commas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeVar

from lvlm_guard.errors import KnobError

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]*)*")
"""A run of letters and digits, with what follows an apostrophe inside it."""

JOIN = re.compile(r"[ \t\u00a0\u2010\u2011-]+")
"""What may stand between the words of one name: blanks and hyphens, also those that break no line."""

T = TypeVar("T")

Objects = str | PathLike[str] | Sequence[str] | None

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "ox": "oxen", "calf": "calves", "leaf": "leaves", "loaf": "loaves",
    "wolf": "wolves", "shelf": "shelves", "scarf": "scarves", "half": "halves", "elf": "elves", "bus": "buses",
    "sheep": "sheep", "scissors": "scissors",
}  # fmt: skip
_PLURALS = {r"([^aeiou])y$": r"\1ies", r"ife$": "ives", r"(s|x|z|ch|sh)$": r"\1es"}
_VERBS = {"is": "are", "was": "were", "has": "have"}
_SINGULAR = {"a", "an", "one", "this", "that", "each", "every", "another", "the", "his", "her", "its", "their", "my"}
_SILENT = re.compile(r"(hour|honest|heir)")
_SOUNDED = re.compile(r"(uni|use|euro|one\b|ewe)")


class Run(NamedTuple):
    """Words of a text that are a known spelling: the first, one behind the last, and the same in characters."""

    first: int
    behind: int
    start: int
    end: int
    spelling: str


def chains(text: str) -> list[list[re.Match[str]]]:
    """Return the words of a text, parted where they can't be of one name."""
    found: list[list[re.Match[str]]] = []
    for word in WORD.finditer(text):
        if found and JOIN.fullmatch(text, found[-1][-1].end(), word.start()):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def named(text: str, known: Container[str], most: int) -> Iterator[Run]:
    """Yield each run of words that is a known spelling, in order; of those within one another the longest.

    `known` are spellings as `spelled` writes them, of `most` words at most.
    """
    before = 0
    for words in chains(text):
        at, lower = 0, [word.group().lower() for word in words]
        while at < len(words):
            runs = (" ".join(lower[at:end]) for end in range(min(at + most, len(words)), at, -1))
            spelling = next((run for run in runs if run in known), None)
            end = at + 1 + (spelling or "").count(" ")
            if spelling is not None:
                yield Run(before + at, before + end, words[at].start(), words[end - 1].end(), spelling)
            at = end
        before += len(words)


class Spellings(dict[str, T]):
    """What each spelling names, words joined by one blank."""

    @cached_property
    def most(self) -> int:
        """Words of the longest."""
        return 1 + max((spelling.count(" ") for spelling in self), default=0)

    def named(self, text: str) -> Iterator[Run]:
        """Yield what a text names; see `named`."""
        return named(text, self, self.most)


@dataclass(frozen=True)
class Vocabulary:
    """Objects in the order of a list, each (name, words that name it, as written but in lower case, its name first).

    `plurals` says whether each word's plural names the object too.
    """

    objects: tuple[tuple[str, tuple[str, ...]], ...]
    plurals: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names, in order."""
        return tuple(name for name, _ in self.objects)

    def spellings(self, by_word: bool = False) -> Spellings[frozenset[str]]:
        """Return what each spelling names: names of objects, or with `by_word` the listed word itself ("pigeon")."""
        return _spellings(self, by_word)

    @classmethod
    def of(cls, objects: Objects) -> Vocabulary:
        """Return the vocabulary that a user asked for.

        Args:
            objects: None or "coco" for COCO's 80 categories; names, each with its synonyms after commas; or the
                path of a file: text with one object a line ("#" starts a comment), or JSON with a list like
                this or an object of name -> list of synonyms.

        Raises:
            KnobError: the file can't be read, or the list is empty or holds an entry without letters.
        """
        if objects is None or objects == "coco":
            return _coco()
        if isinstance(objects, str | PathLike):
            return _made(_entries(Path(objects)), repr(str(objects)))
        return _listed(tuple(tuple(entry) if isinstance(entry, list) else entry for entry in objects))


def _entries(path: Path) -> list[object]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        read = json.loads(text)
        return [[name, *synonyms] for name, synonyms in read.items()] if isinstance(read, dict) else list(read)
    except (OSError, TypeError, ValueError) as error:
        raise KnobError(
            f"The objects could not be read from {str(path)!r} ({error}). Give a text file with one object a line "
            "('couch, sofa'), a JSON list, a tuple of names, or None for COCO's 80 categories."
        ) from error


def _made(entries: Iterable[object], where: str) -> Vocabulary:
    made = []
    for entry in entries:
        parts = [str(part) for part in entry] if isinstance(entry, list | tuple) else str(entry).split(",")
        words = tuple(dict.fromkeys(" ".join(part.lower().split()) for part in parts if part.strip()))
        if not words or not all(WORD.search(word) for word in words):
            raise KnobError(
                f"{entry!r} in {where} names no object: give a word or words, such as 'dog' or 'couch, sofa'."
            )
        made.append((words[0], words))
    if not made:
        raise KnobError(f"There is no object in {where}: name one at least, or give None for COCO's 80 categories.")
    return Vocabulary(tuple(made))


@lru_cache(maxsize=1)
def _coco() -> Vocabulary:
    text = files("lvlm_guard.matching").joinpath("data/coco_synonyms.txt").read_text(encoding="utf-8")
    return _made(text.splitlines(), "COCO's categories")


@lru_cache(maxsize=32)
def _listed(entries: tuple[object, ...]) -> Vocabulary:
    return _made(entries, "the list of objects")


@lru_cache(maxsize=32)
def _spellings(vocabulary: Vocabulary, by_word: bool) -> Spellings[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for name, words in vocabulary.objects:
        for word in words:
            for spelling in (word, plural(word)) if vocabulary.plurals else (word,):
                found.setdefault(spelled(spelling), set()).add(word if by_word else name)
    return Spellings({spelling: frozenset(names) for spelling, names in found.items()})


def spelled(text: str) -> str:
    """Return a name as it is looked up: lower case, its words joined by one blank."""
    return " ".join(WORD.findall(text.lower()))


def plural(word: str) -> str:
    """Return the plural of an English noun or compound ("stop sign" -> "stop signs"), by rule."""
    head, blank, last = word.rpartition(" ")
    for ending, irregular in _IRREGULAR.items():
        if last == ending or (ending in ("man", "woman", "child", "person") and last.endswith(ending)):
            return head + blank + last[: -len(ending)] + irregular
    for ending, by in _PLURALS.items():
        if re.search(ending, last):
            return head + blank + re.sub(ending, by, last)
    return word + "s"


TEMPLATE = "is there {article} {object} in the image?"
"""The claim about an object that matchers know best; {article} is its "a" or "an"."""


def check_objects(objects: Objects, _: str = "") -> None:
    """Raise `KnobError` where objects can't be read."""
    Vocabulary.of(objects)


def check_template(template: str, _: str = "") -> None:
    """Raise `KnobError` unless a claim about an object can be made of a template."""
    try:
        if "dog" not in template.format(article="a", object="dog"):
            raise KeyError("object")
    except (KeyError, IndexError, ValueError) as error:
        raise KnobError(
            f"The template {template!r} can't be filled in ({error}): write {{object}}, and {{article}} where its 'a' "
            f"or 'an' belongs, such as {TEMPLATE!r}."
        ) from error


@lru_cache(maxsize=4096)
def claim_about(name: str, template: str = TEMPLATE) -> str:
    """Return the claim that the picture holds an object."""
    return template.format(article=article(name), object=name)


def article(name: str) -> str:
    """Return "a" or "an" before a noun, by its first letters."""
    vowel = name[:1].lower() in "aeiou" and name[:1] != ""
    sounds = _SILENT.match(name.lower()) if not vowel else not _SOUNDED.match(name.lower())
    return "an" if sounds else "a"


def cased(word: str, like: str, spelling: str) -> str:
    """Return a word in the case of the text it replaces: upper, every word's first letter, the first letter, or as is.

    It is left as listed too where the text that goes out is in the list's own `spelling`.
    """
    if like == spelling or not like:
        return word
    if like.isupper():
        return word.upper() if len(like) > 2 else word  # "TV" is no shouting
    if like.istitle() and " " in like:
        return word.title()
    return begun(word, like)


def begun(word: str, like: str) -> str:
    """Return a word with a first letter as large as that of another."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def agreeing(verb: str, is_plural: bool) -> str:
    """Return is, was or has in the number of its noun, in its case; other words as they are."""
    pairs = _VERBS if is_plural else {many: one for one, many in _VERBS.items()}
    return begun(pairs[verb.lower()], verb) if verb.lower() in pairs else verb


def stands_for_several(before: str, after: str) -> bool:
    """Tell by the words beside a noun whether it is a plural, where its own form does not tell: "two sheep are"."""
    return after.lower() in _VERBS.values() or before.lower() not in _SINGULAR
