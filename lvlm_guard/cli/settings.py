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
  unit in which a number is given. A parameter of the command's own may be marked so too.

An option that is not given, and has no default, leaves its field to the dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from rich.markup import escape
from typer import BadParameter
from typer.models import ParameterInfo

from lvlm_guard.embedded import EMBEDDED as EMBEDDED

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
        elsewhere, embedded = ("all" if each is None else f"{each:g}" for each in (self.elsewhere, self.embedded))
        return f"[default: {elsewhere}; embedded {embedded}]".replace("e-0", "e-")


@dataclass(frozen=True)
class Times:
    """The unit of an option, in that of its field."""

    unit: int


@dataclass(frozen=True)
class _Setting:
    """A field, or a parameter, that is an option: its type, what stands beside it, and its default."""

    name: str
    kind: Any
    option: ParameterInfo
    usual: Usual | None
    unit: int
    commas: bool
    default: Any

    @classmethod
    def of(cls, name: str, hint: Any, default: Any) -> _Setting | None:
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        option = next((mark for mark in marks if isinstance(mark, ParameterInfo)), None)
        if option is None:
            return None
        usual = next((mark for mark in marks if isinstance(mark, Usual)), None)
        unit = next((mark.unit for mark in marks if isinstance(mark, Times)), 1)
        return cls(name, kind, option, usual, unit, COMMAS in marks, default)

    @property
    def several(self) -> bool:
        return any(get_origin(each) is tuple for each in (self.kind, *get_args(self.kind)))

    def parameter(self) -> Parameter:
        kind, option, default = self.kind, self.option, self.default
        if self.usual is not None:
            kind, default, option = kind | None, None, copy(option)
            option.help = f"{option.help} {self.usual}"
        elif self.commas and default != ():
            kind, default = (str | None, None) if default is None else (str, ",".join(map(str, default)))
        elif self.several:
            kind, default = list[str if self.commas else get_args(kind)[0]] | None, list(default) or None  # type: ignore[misc]
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
            names = tuple(self._read(part.strip()) for part in text.split(",") if part.strip())
            if text and not names:
                raise BadParameter(f"{text!r} names nothing: give one or more names, comma-separated.")
            yield self.name, names
        elif self.several:
            yield self.name, tuple(value)
        else:
            yield self.name, value if self.unit == 1 else value * self.unit

    def _read(self, part: str) -> Any:
        (kind, *_), least = get_args(self.kind), self.option.min
        told = f"--{self.name.replace('_', '-')} {part!r}: give"
        if get_origin(kind) is Literal and part not in get_args(kind):
            raise BadParameter(f"{told} one or more of {', '.join(get_args(kind))}, comma-separated.")
        if kind is not int:
            return part
        if not part.lstrip("-").isdecimal() or (least is not None and int(part) < least):
            which, such = ("", "0,1,2") if least is None else (f" of at least {least:g}", "1,8,32")
            raise BadParameter(f"{told} whole numbers{which}, comma-separated, such as {such}.")
        return int(part)


def _settings_of(annotation: Any) -> tuple[Any, bool, dict[str, _Setting]]:
    """Return the dataclass that a parameter is of, whether the command completes it, and its options; else None."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    completes = get_origin(kind) is partial
    kind = get_args(kind)[0] if completes else kind
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None, False, {}
    hints = get_type_hints(kind, include_extras=True)
    only = next((mark for mark in marks if isinstance(mark, Only)), tuple(hints))
    found = {}
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        setting = _Setting.of(field.name, hints[field.name], default)
        if field.init and field.name in only and setting is not None:
            found[field.name] = setting
    return kind, completes, found


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options of the settings that it takes; see above."""
    own = signature(command, eval_str=True).parameters
    taken = {name: _settings_of(each.annotation) for name, each in own.items()}
    marked = {name: _Setting.of(name, each.annotation, each.default) for name, each in own.items()}
    options: dict[str, Parameter] = {}
    for name, (kind, _, settings) in taken.items():
        for each in (name,) if kind is None else settings:
            one = marked[each] if each in own else settings[each]
            options.setdefault(each, _shown(own[each] if one is None else one.parameter()))

    @wraps(command)
    def run(**values: Any) -> None:
        embedded = values.get("data", values.get("model")) == EMBEDDED
        handed: dict[str, Any] = {}
        for name, (kind, completes, settings) in taken.items():
            one = marked[name]
            if kind is None:
                handed[name] = dict(one.given(values[name], embedded)).get(name, one.default) if one else values[name]
                continue
            given = dict(pair for key, one in settings.items() for pair in one.given(values[key], embedded))
            made = partial(kind, **given)
            handed[name] = made if completes else made()
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
