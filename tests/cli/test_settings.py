"""A command's options come from the dataclasses that it hands on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from lvlm_guard.cli.console import reporting
from lvlm_guard.cli.settings import COMMAS, Usual
from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class Lessons:
    model: Annotated[str, typer.Option(help="Who is taught.", metavar="ID")] = "embedded"
    methods: Annotated[tuple[str, ...], COMMAS, typer.Option(help="Comma-separated.")] = ("agla", "vote")
    questions: Annotated[tuple[str, ...], typer.Option(help="Repeatable.")] = ()
    split: Annotated[Literal["test", "val"], typer.Option(help="Which.")] = "test"
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures. [default: the task's]")] = None
    knobs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model == "wrong":
            raise KnobError("model is 'wrong'")


@dataclass(frozen=True)
class Recipe:
    batch: Annotated[int, typer.Option(min=1, help="Pictures."), Usual(2, embedded=24)]
    pictures: Annotated[int | None, typer.Option(help="To learn from."), Usual(None, embedded=1200)]
    model: Annotated[str, typer.Option(help="Hidden by the first of the name.")]
    rate: Annotated[float, typer.Option("--rate", "--lr", min=1e-9, help="Peak.")] = 0.5
    soft: Annotated[bool, typer.Option("--soft/--hard", help="Kind.")] = True


def called(*arguments: str) -> tuple[int, str, list[Any]]:
    got: list[Any] = []

    def train(
        lessons: Lessons,
        recipe: partial[Recipe],
        out: Annotated[str, typer.Option(help="Folder.")] = "o",
        seeds: Annotated[tuple[int, ...], COMMAS, typer.Option("--seeds", "--seed", help="Of it.")] = (0,),
        at_once: Annotated[int, Usual(8, embedded=256), typer.Option(help="Prompts.")] = 8,
    ) -> None:
        """Train."""
        got.extend([lessons, recipe, (out, seeds, at_once)])

    app = typer.Typer(rich_markup_mode="rich")
    app.command()(reporting(train))
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.output, got


def test_a_command_is_given_settings_made_of_its_options() -> None:
    code, _, (lessons, recipe, own) = called(
        *("--methods", "focus, agla", "--questions", "a", "--questions", "b", "--split", "val", "--lr", "2", "--hard"),
        *("--out", "there", "--seed", "3, 4", "--at-once", "7"),
    )
    assert code == 0
    assert lessons == Lessons(methods=("focus", "agla"), questions=("a", "b"), split="val")
    assert recipe(batch=7) == Recipe(7, 1200, "embedded", rate=2.0, soft=False)
    assert own == ("there", (3, 4), 7)


@pytest.mark.parametrize(("model", "batch", "pictures"), [("embedded", 24, 1200), ("some/id", 2, None)])
def test_defaults_may_depend_on_the_embedded_world(model: str, batch: int, pictures: int | None) -> None:
    _, _, (lessons, recipe, own) = called("--model", model)
    assert own == ("o", (0,), 256 if model == "embedded" else 8)
    assert recipe() == Recipe(batch, pictures, model)
    assert lessons == Lessons(model=model)


def test_help_shows_each_option_once_with_its_default() -> None:
    code, shown, _ = called("--help")
    assert code == 0
    assert "Pictures. [default: 2; embedded 24]" in shown
    assert "To learn from. [default: all; embedded 1200]" in shown
    assert "Comma-separated. [default: agla,vote]" in shown
    assert "Pictures. [default: the task's]" in shown
    assert "--hard" in shown
    assert shown.count("--model") == 1
    assert "knobs" not in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--split", "x"], "'x'"), (["--limit", "0"], "--limit"), (["--seeds", "x"], "whole numbers")],
)
def test_values_out_of_range_are_refused_by_name(arguments: list[str], says: str) -> None:
    code, shown, got = called(*arguments)
    assert code == 2
    assert says in shown
    assert not got


def test_what_the_settings_refuse_is_a_message_and_an_exit_code() -> None:
    code, shown, got = called("--model", "wrong")
    assert (code, got) == (2, [])
    assert "model is 'wrong'" in shown


def test_a_command_without_settings_is_left_alone() -> None:
    got: list[str] = []

    def plain(name: Annotated[str, typer.Argument(help="Whose.")]) -> None:
        got.append(name)

    command: Callable[..., None] = reporting(plain)
    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["me"]).exit_code == 0
    assert got == ["me"]


def test_lists_are_read_by_what_they_may_hold_and_are_their_default_where_none_is_given() -> None:
    got: list[Any] = []

    def measure(
        batches: Annotated[tuple[int, ...], COMMAS, typer.Option(min=1, help="Sizes.")] = (1, 8),
        ways: Annotated[tuple[Literal["lazy", "batched"], ...], COMMAS, typer.Option(help="Ways.")] = ("lazy",),
        words: Annotated[tuple[int, ...], COMMAS, typer.Option(min=1, help="Lengths.")] = (),
        files: Annotated[tuple[str, ...], typer.Option(help="Repeatable.")] = (),
    ) -> None:
        got.append((batches, ways, words, files))

    app = typer.Typer()
    app.command()(reporting(measure))
    for arguments in ([], ["--batches", "2,4", "--ways", "batched,lazy", "--words", "16, 32", "--files", "a,b"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert got == [((1, 8), ("lazy",), (), ()), ((2, 4), ("batched", "lazy"), (16, 32), ("a,b",))]
    for wrong, said in (
        (["--batches", "1,0"], "--batches '0': give whole numbers of at least 1"),
        (["--ways", "lazy,fast"], "--ways 'fast': give one or more of lazy, batched"),
        (["--ways", ","], "',' names nothing"),
    ):
        done = CliRunner().invoke(app, wrong, env={"COLUMNS": "200"})
        assert done.exit_code == 2
        assert said in done.output
