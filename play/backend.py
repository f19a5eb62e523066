"""What the page asks: a model somewhere, the methods that it answers with, who judges its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from lvlm_guard.cli.methods import found
from lvlm_guard.knobs import defaults_of
from lvlm_guard.methods import REGISTRY
from lvlm_guard.play.judging import Judge
from lvlm_guard.report.answer import Said

if TYPE_CHECKING:
    from PIL.Image import Image

GREEDY = "greedy"
"""The plain answer."""


@dataclass(frozen=True)
class Offered:
    """A method that can be chosen.

    Args:
        does: what it does, in a line.
        knobs: those that the page offers, with their defaults.
        choices: of a knob that takes one of a few words.
    """

    does: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def offered_methods() -> dict[str, Offered]:
    """Return the plain answer and every method to choose from that can be loaded and needs no statistics.

    Whoever opens the page sets numbers, switches and words from a list. Free texts stay the operator's: a matcher is
    a folder to read, a list of objects a file, a template grows as long as its writer wants.
    """
    methods = {GREEDY: Offered("What the model says by itself, the likeliest token each time.")}
    for row in found():
        if row["kind"] != "method" or row["error"] or row["parity"] or REGISTRY.get(row["name"]).needs_statistics:
            continue
        types, knobs, choices = get_type_hints(REGISTRY.get(row["name"])), {}, {}
        for knob, default in defaults_of(row["name"]).items():
            if get_origin(types[knob]) is Literal:
                choices[knob] = get_args(types[knob])
            elif not {types[knob], *_union(types[knob])} & {bool, int, float} or _union(types[knob]) - {
                int,
                float,
                NoneType,
            }:
                continue
            knobs[knob] = default
        methods[row["name"]] = Offered(row["does"], knobs, choices)
    return methods


def _union(kind: Any) -> set[Any]:
    return set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else set()


@dataclass(frozen=True)
class Asked:
    """One question.

    Args:
        picture: RGB.
        prompt: as a user writes it.
        method: a name of the backend's `methods`.
        knobs: those that differ from the defaults.
        most_tokens: of the answer.
    """

    picture: Image
    prompt: str
    method: str = GREEDY
    knobs: Mapping[str, Any] = field(default_factory=dict)
    most_tokens: int = 64


class Backend(Protocol):
    """Who answers."""

    @property
    def title(self) -> str:
        """Its name for readers."""

    @property
    def embedded(self) -> bool:
        """Whether it is the model in this package, which knows its own world only."""

    @property
    def methods(self) -> Mapping[str, Offered]:
        """Name -> method, the plain answer first."""

    @property
    def judge(self) -> Judge | None:
        """Who judges answers; None where no matcher is at hand."""

    def answers(self, asked: Asked) -> Iterator[Said]:
        """Return one answer as it grows; the last one is whole, with its trace and the seconds that it took.

        Raises:
            GuardError: it can't be answered as asked.
        """

    def decoded(self, tokens: Any) -> str:
        """Return the text of a trace's tokens."""

    def matched_text(self, asked: Asked) -> str:
        """Return the text that the picture is matched with."""

    def remarks(self, prompt: str) -> list[str]:
        """Return what a reader of an answer to this prompt must know."""

    def script(self, picture: str, questions: list[Asked]) -> str:
        """Return a Python script that asks the same.

        Args:
            picture: an expression and its imports, see `snippet.picture_code`.
            questions: at least one, of the same picture and prompt.
        """
