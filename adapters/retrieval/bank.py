"""Which words may stand for each other in a caption, in what form, and which must not: what swaps are made from.

The package's own list names COCO's 80 categories with their synonyms, and colours, materials, numbers, sizes and
states. The embedded world has its own, made of the words it is drawn from. A user's is a JSON file like
`data/bank.json`, or comes from the categories of their rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.vocabulary import WORD, Vocabulary, article, claim_about, plural, spelled

FUNCTION = (
    " a an the of with and or in on at to for from by is are has have it its that which this as often usually photo "
)
"""Words of a sentence that say nothing of its object, each between blanks."""

ONE = "one"
Made = TypeVar("Made")


class Named(NamedTuple):
    """What a word names: a category by one of its words, in singular or plural; nothing where there is no name."""

    name: str = ""
    word: str = ""
    is_plural: bool = False


class Valued(NamedTuple):
    """What a word says: a value of an attribute, by its group; nothing where there is no attribute."""

    attribute: str = ""
    group: int = 0

    @property
    def kind(self) -> str:
        """The kind of the attribute: "state" of "state/open"."""
        return self.attribute.partition("/")[0]


@dataclass(frozen=True)
class WordBank:
    """Categories by kind, attributes by type; raises `KnobError` if there is none, or a category is of two kinds.

    Args:
        meta: kind of thing -> names of categories; a category is exchanged for another of its kind.
        synonyms: name -> further words for it.
        attributes: type -> groups of values; a value is exchanged for the first of another group, and those of one
            group mean nearly the same. A type "state/open" is one scale of the kind "state".
        hypernyms: name -> broader names; the two are never exchanged, for the swap would still be true.
        plurals: words whose plural does not follow the rules.
        plural_only: names without a singular.
        counting_articles: whether "a" counts as "one", so that "a dog" may become "two dogs": where captions are
            lists of things, without verbs that would have to agree.
    """

    meta: Mapping[str, Sequence[str]]
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attributes: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    hypernyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plurals: Mapping[str, str] = field(default_factory=dict)
    plural_only: Sequence[str] = ()
    counting_articles: bool = False

    def __post_init__(self) -> None:
        names = [name for members in self.meta.values() for name in members]
        if not names and not self.attributes:
            raise KnobError("The word bank is empty: give categories by kind (meta), or attributes.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise KnobError(f"The categories {', '.join(twice)} are listed twice: each is of one kind.")

    @classmethod
    @cache
    def general(cls) -> WordBank:
        """Return the package's own list."""
        read = files("lvlm_guard.adapters.retrieval").joinpath("data/bank.json").read_text("utf-8")
        made, known = cls._of(json.loads(read)), dict(Vocabulary.of(None).objects)
        return replace(made, synonyms={name: known[name][1:] for name in made.meta_of})

    @classmethod
    def world(cls) -> WordBank:
        """Return the list of the embedded world: its objects, colours and numbers, in its spelling."""
        from lvlm_guard.embedded.tinted import COLOURS, METAS, NUMBERS

        values = {"colour": [[colour] for colour in COLOURS], "number": [[n] for n in NUMBERS if n != "no"]}
        return cls(METAS, attributes=values, counting_articles=True)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> WordBank:
        """Read a JSON file with the fields of this class; a group of one value may be written without its list.

        Raises `KnobError` where it can't be read, or holds what it must not.
        """
        example = '{"meta": {"cat": ["Sphynx", "Bengal"]}, "attributes": {"colour": ["red", ["grey", "gray"]]}}'
        return _from_json(path, "The word bank", cls._of, example)

    @classmethod
    def _of(cls, read: dict[str, Any]) -> WordBank:
        attributes = {
            kind: [[group] if isinstance(group, str) else [str(word) for word in group] for group in groups]
            for kind, groups in read.get("attributes", {}).items()
        }
        for kind, names in read.get("meta", {}).items():
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"meta {kind!r} must be a list of names")
        return cls(**read | {"attributes": attributes})

    def with_categories(self, meta: Mapping[str, Iterable[str]]) -> WordBank:
        """Return this bank's attributes with other categories, such as those of a data set's rows."""
        names = {kind: tuple(dict.fromkeys(each)) for kind, each in meta.items()}
        return replace(self, meta=names, synonyms={}, hypernyms={}, plural_only=())

    @cached_property
    def meta_of(self) -> Mapping[str, str]:
        """Name -> its kind."""
        return {name: kind for kind, names in self.meta.items() for name in names}

    @cached_property
    def categories(self) -> Mapping[str, Named]:
        """Spelling in lower case -> the category it names."""
        found: dict[str, Named] = {}
        for name in self.meta_of:
            for word in dict.fromkeys([name, *self.synonyms.get(name, ())]):
                found.setdefault(spelled(word), Named(name, word, name in self.plural_only))
                found.setdefault(spelled(self.plural(word)), Named(name, word, True))
        return found

    @cached_property
    def values(self) -> Mapping[str, Valued]:
        """Spelling in lower case -> the value it says."""
        return {
            spelled(word): Valued(attribute, i)
            for attribute, groups in self.attributes.items()
            for i, group in enumerate(groups)
            for word in group
        }

    @cached_property
    def spellings(self) -> frozenset[str]:
        """What a word can be found by."""
        return frozenset((*self.categories, *self.values))

    @cached_property
    def longest(self) -> int:
        """Most words in a spelling."""
        return max(len(spelling.split()) for spelling in self.spellings)

    def plural(self, word: str) -> str:
        """Return the plural of a word."""
        if word in self.plural_only:
            return word
        head, blank, last = word.rpartition(" ")
        return head + blank + self.plurals[last] if last in self.plurals else plural(word)

    def related(self, one: str, other: str) -> bool:
        """Whether two categories are the same, or one is a kind of the other: "teddy bear" and "bear" too."""
        pairs = ((one, other), (other, one))
        return spelled(one) == spelled(other) or any(
            spelled(a).endswith(f" {spelled(b)}")
            or b in self.hypernyms.get(a, ())
            or spelled(a) in map(spelled, self.synonyms.get(b, ()))
            for a, b in pairs
        )


@dataclass(frozen=True)
class Sentences:
    """What may be said of things instead of their name, and what tells two of them apart.

    Args:
        classes: name -> sentences about it (CuPL, arXiv:2209.03320); an LLM's or one's own.
        pairs: "one|other" -> [(a sentence about the one, about the other)] (FuDD, arXiv:2311.07593).
    """

    classes: Mapping[str, Sequence[str]]
    pairs: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Sentences:
        """Read {"classes": {"horse": ["..."]}, "pairs": {"horse|zebra": [{"a": "...", "b": "..."}]}}, as a bank."""

        def made(read: Any) -> Sentences:
            pairs = {
                name: tuple((str(p["a"]), str(p["b"])) for p in each) for name, each in read.get("pairs", {}).items()
            }
            return cls({str(name): tuple(map(str, said)) for name, said in read["classes"].items()}, pairs)

        return _from_json(path, "Sentences", made, '{"classes": {"horse": ["a large animal with a mane"]}}')

    @classmethod
    def of(cls, bank: WordBank) -> Sentences:
        """Return what a word bank says: a photo of the thing, of its synonyms, and of its kind."""
        made = {}
        for name, kind in bank.meta_of.items():
            said = [f"a photo of {article(word)} {word}" for word in (name, *bank.synonyms.get(name, ()))]
            made[name] = (*said, f"{said[0]}, {article(kind)} {kind}")
        return cls(made)

    def features(self, names: Sequence[str], encode: Callable[[Sequence[str]], Any], plain: str) -> Any:
        """Return a feature of each name, [n, d]: the normalised mean of those of its sentences; D1.

        Args:
            encode: texts -> normalised features [m, d].
            plain: the template for names without a sentence, {article} and {object} in it.
        """
        return pooled([self.classes.get(name) or [claim_about(name, plain)] for name in names], encode)

    def keywords(self, name: str, known: Callable[[str], bool] = bool, most: int = 3) -> str:
        """Return the first words of a name's sentences that are no function words nor its own, comma-joined; D5."""
        words = WORD.findall(" ".join(self.classes.get(name, ())).lower())
        kept = dict.fromkeys(word for word in words if f" {word} " not in FUNCTION and word not in name.lower().split())
        return ", ".join([word for word in kept if known(word)][:most])

    def sides(self, names: Sequence[str], encode: Callable[[Sequence[str]], Any]) -> Any:
        """Return what is said of each name as against each other, [names, names, d]; 0 where nothing is; D2."""
        found = torch.zeros(len(names), len(names), encode([next(iter(names))]).shape[1])
        for one, name in enumerate(names):
            for other, against in enumerate(names):
                said = [a for a, _ in self.pairs.get(f"{name}|{against}", ())]
                said += [b for _, b in self.pairs.get(f"{against}|{name}", ())]
                if said and one != other:
                    found[one, other] = normalize(encode(said).mean(0), dim=0)
        return found


def pooled(said: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Return the normalised mean of the features of several texts each, [n, d]."""
    found = encode([text for each in said for text in each]).split([len(each) for each in said])
    return torch.stack([normalize(each.mean(0), dim=0) for each in found])


def _from_json(path: str | PathLike[str], what: str, made: Callable[[Any], Made], example: str) -> Made:
    try:
        return made(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise KnobError(
            f"{what} could not be read from {str(path)!r} ({error!r}). Give a JSON object such as {example}."
        ) from error
