"""A command's options come from the settings that it hands on: each is declared once, in its room, beside its default.

A dataclass says which of its fields are options: `steps: Annotated[int, typer.Option(min=1, help="Of it.")] = 500`.
A command with a parameter of that class has these options in its place, and is given the settings made of them:

- `settings: Lessons` is a `Lessons`; `settings: partial[Lessons]` is one that the command completes:
  `settings(knobs={...})`.
- `settings: Annotated[Lessons, Only(("model", "steps"))]` are those fields alone.
- Fields of one name, of several settings or of the command itself, are one option.
- `tuple[str, ...]` is an option that can be repeated; with `COMMAS` each text is split, and where there is a default it
  is one text, "agla,vote".
- `Usual(2, embedded=24)` beside the option is a default that is another on the embedded world; `Times(1 << 20)` is the
  unit in which a number is given.

An option that is not given, and has no default, leaves its field to the dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from rich.markup import escape
from typer import BadParameter
from typer.models import ParameterInfo

EMBEDDED = "embedded"
COMMAS = object()


class Only(tuple[str, ...]):
    """The fields that a command has as options, where it has not all."""


@dataclass(frozen=True)
class Usual:
    """A default that depends on what is worked on, `--data` or else `--model`; the option's help ends in it.

    Args:
        elsewhere, embedded: of anything, None for all that there is, and of the embedded world.
    """

    elsewhere: Any
    embedded: Any

    def __str__(self) -> str:
        return f"[default: {'all' if self.elsewhere is None else self.elsewhere}; embedded {self.embedded}]"


@dataclass(frozen=True)
class Times:
    """The unit of an option, in that of its field."""

    unit: int


@dataclass(frozen=True)
class _Setting:
    """A field that is an option: its type, what stands beside it, and its default."""

    name: str
    kind: Any
    option: ParameterInfo
    usual: Usual | None
    unit: int
    commas: bool
    default: Any

    @classmethod
    def of(cls, field: Field[Any], hint: Any) -> _Setting | None:
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        option = next((mark for mark in marks if isinstance(mark, ParameterInfo)), None)
        if option is None:
            return None
        usual = next((mark for mark in marks if isinstance(mark, Usual)), None)
        unit = next((mark.unit for mark in marks if isinstance(mark, Times)), 1)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        return cls(field.name, kind, option, usual, unit, COMMAS in marks, default)

    @property
    def several(self) -> bool:
        return any(get_origin(each) is tuple for each in (self.kind, *get_args(self.kind)))

    def parameter(self) -> Parameter:
        kind, option, default = self.kind, self.option, self.default
        if self.usual is not None:
            kind, default, option = kind | None, None, copy(option)
            option.help = f"{option.help} {self.usual}"
        elif self.commas and default != ():
            kind, default = (str | None, None) if default is None else (str, ",".join(default))
        elif self.several:
            kind, default = list[get_args(kind)[0]] | None, list(default) or None  # type: ignore[misc]
        elif default is MISSING:
            default = Parameter.empty
        elif self.unit != 1:
            default //= self.unit
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])

    def given(self, value: Any, embedded: bool) -> Iterator[tuple[str, Any]]:
        """Yield the field's name and value, or nothing where the dataclass's own default holds."""
        if self.usual is not None:
            yield self.name, value if value is not None else self.usual.embedded if embedded else self.usual.elsewhere
        elif value is None:
            return
        elif self.commas:
            text = value if isinstance(value, str) else ",".join(value)
            names = tuple(part.strip() for part in text.split(",") if part.strip())
            if text and not names:
                raise BadParameter(f"{text!r} names nothing: give names, comma-separated.")
            yield self.name, names
        elif self.several:
            yield self.name, tuple(value)
        else:
            yield self.name, value if self.unit == 1 else value * self.unit


def settings_of(annotation: Any) -> tuple[Any, dict[str, _Setting]]:
    """Return the dataclass that a parameter is of, or completes, and its options; (None, {}) for other parameters."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kind = get_args(kind)[0] if get_origin(kind) is partial else kind
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None, {}
    hints = get_type_hints(kind, include_extras=True)
    only = next((mark for mark in marks if isinstance(mark, Only)), tuple(hints))
    found = (_Setting.of(field, hints[field.name]) for field in fields(kind) if field.init)
    return kind, {one.name: one for one in found if one is not None and one.name in only}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options of the settings that it takes; see above."""
    own = signature(command, eval_str=True).parameters
    taken = {name: (each.annotation, *settings_of(each.annotation)) for name, each in own.items()}
    options: dict[str, Parameter] = {}
    for name, (_, kind, settings) in taken.items():
        for each in [own[name]] if kind is None else [one.parameter() for one in settings.values()]:
            options.setdefault(each.name, _shown(own.get(each.name, each)))

    @wraps(command)
    def run(**values: Any) -> None:
        embedded = values.get("data", values.get("model")) == EMBEDDED
        handed: dict[str, Any] = {}
        for name, (annotation, kind, settings) in taken.items():
            if kind is None:
                handed[name] = values[name]
                continue
            given = dict(pair for key, one in settings.items() for pair in one.given(values[key], embedded))
            handed[name] = partial(kind, **given) if get_origin(annotation) is partial else kind(**given)
        command(**handed)

    run.__signature__ = Signature(list(options.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _shown(parameter: Parameter) -> Parameter:
    """Return an option whose help shows brackets: "[default: all]" would be markup."""
    kind, *marks = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
    marks = [copy(mark) for mark in marks]
    for mark in marks:
        if isinstance(mark, ParameterInfo) and mark.help:
            mark.help = escape(mark.help)
    made = parameter.replace(kind=Parameter.KEYWORD_ONLY)
    return made.replace(annotation=Annotated[(kind, *marks)]) if marks else made
