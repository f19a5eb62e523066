"""What the commands that train a matcher share: their options, and how their results are shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table
from typer import Option

from lvlm_guard.cli.console import environment, line, out, print_json, quiet_libraries, say, usage
from lvlm_guard.cli.options import Json, StartOver
from lvlm_guard.cli.settings import COMMAS, EMBEDDED, Usual
from lvlm_guard.progress import progress

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.recipe import Recipe as Recipe
else:
    Recipe = import_module("lvlm_guard.adapters.training.recipe").Recipe


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's values for options that the command line does not give."""
    if path is None:
        return None
    import yaml

    known = {name.lstrip("-"): option for option in context.command.params for name in option.opts}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ValueError("it holds no options, `steps: 500`")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise usage(f"--config {path} can't be read: {error}.") from None
    for name in given:
        if name not in known:
            raise usage(f"--config {path}: there is no option {name!r}. Options: {', '.join(known)}.")
    values = {known[name].name: _listed(known[name], value) for name, value in given.items()}
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _listed(option: Any, value: Any) -> Any:
    """Return a file's value as the command line gives it: a list for an option that is repeated, else one text."""
    if getattr(option, "multiple", False):
        return value if value is None or isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


_CONFIG = "YAML file of options, by their long names."
Config = Annotated[Path | None, Option(help=_CONFIG, is_eager=True, callback=_configured, metavar="FILE")]

Seeds = Annotated[
    tuple[int, ...], COMMAS, Option("--seeds", "--seed", help="Of training, comma-separated: an adapter each.")
]

Validation = Annotated[int | None, Option(min=2, help="Validation pictures to measure on."), Usual(None, embedded=200)]

_DATA = Option(help="embedded, a .jsonl file, a folder, .tar shards, or hf:owner/name.", metavar="DATA")
_IMAGES = Option(help="Where paths of a .jsonl file start. [default: its own folder]")
_COLUMN = Option(help="Of a data set: captions=sentences. Repeatable.", metavar="KEY=COLUMN")
_ON_BAD = Option(help="Pictures that can't be read: stop, or skip and count.")
_PICTURES = Option(min=4, help="To train on, the first ones.")
_TEST = Option(min=2, help="Test pictures of --compare. [default: all; embedded 400, 500]")
_WORKERS = Option(min=0, help="Processes that read pictures, where they don't fit in memory.")
_REPORT_TO = Option(help="Trackers, comma-separated: tensorboard, wandb, mlflow, ...")


@dataclass(frozen=True)
class Training:
    """What every training of a matcher is told, beside its recipe."""

    data: Annotated[str, _DATA] = EMBEDDED
    clip: Annotated[str, Option(help="embedded, a folder or a hub id.", metavar="ID")] = EMBEDDED
    images: Annotated[Path | None, _IMAGES] = None
    column: Annotated[tuple[str, ...], _COLUMN] = ()
    on_bad: Annotated[Literal["raise", "skip"], _ON_BAD] = "raise"
    pictures: Annotated[int | None, _PICTURES, Usual(None, embedded=1200)] = None
    batch: Annotated[int, Option(min=2, help="Pairs, or pictures of a group."), Usual(64, embedded=32)] = 64
    measure_every: Annotated[int | None, Option(min=1, help="Steps between measurements. [default: an epoch]")] = None
    seeds: Seeds = (0,)
    test_pictures: Annotated[int | None, _TEST] = None
    workers: Annotated[int, _WORKERS] = 0
    report_to: Annotated[str, _REPORT_TO] = "none"
    config: Config = None
    device: Annotated[Literal["auto", "cpu"], Option(help="auto: accelerate's choice.")] = "auto"
    start_over: StartOver = False
    json: Json = False

    @property
    def world(self) -> bool:
        """Whether it is on the embedded world, where minutes count."""
        return self.data == EMBEDDED

    def call(self, folder: Path, compare: bool, usual: int) -> Any:
        """Return a `lvlm_guard.adapters.training.recipe.Call`; `usual` are the test pictures of the embedded world."""
        return called(
            folder,
            self.seeds,
            self.device,
            self.start_over,
            compare=compare,
            pictures=self.test_pictures or (usual if self.world else None),
            workers=self.workers,
            report_to=self.report_to,
        )

    def facts(self, call: Any, world: str = "world") -> Any:
        """Return the facts of --data, with the first training pictures alone, and tell what they hold."""
        pairs = [column.partition("=") for column in self.column]
        if any(not (name and theirs) for name, _, theirs in pairs):
            raise usage("--column: give KEY=COLUMN, such as captions=sentences.")
        opened = import_module("lvlm_guard.adapters.data").open_facts(
            world if self.world else self.data,
            columns={name: theirs for name, _, theirs in pairs} or None,
            images=self.images,
            on_bad=self.on_bad,
        )
        facts = opened.first(self.pictures)
        call.told().echo(facts.summary())
        return facts

    def recipe(
        self,
        given: partial[Recipe],
        data: Any,
        epochs: int | None,
        steps: int | None,
        usual: int,
        looks: int = 4,
        narrow: bool = True,
        **more: Any,
    ) -> Recipe:
        """Return a recipe of so many epochs (10), or steps; an epoch is the same one on any number of processes.

        Args:
            given: what it is completed from.
            usual, looks: steps on the embedded world, and measurements; elsewhere there is one an epoch.
            narrow: whether the embedded world is trained in bfloat16.
            **more: of the recipe.
        """
        epoch = max(1, len(data.parted()[0].rows) // (self.batch * given.keywords["accumulate"]))
        steps = steps or (epochs * epoch if epochs else usual if self.world else 10 * epoch)
        every = self.measure_every or (max(1, steps // looks) if self.world else epoch)
        if self.world and narrow and given.keywords["precision"] == "auto":
            more["precision"] = "bfloat16"
        return given(steps=steps, batch=self.batch, measure_every=every, **more)


def ready() -> None:
    """Raise `MissingExtraError` where peft or accelerate is not installed; keep libraries quiet."""
    from lvlm_guard.errors import MissingExtraError

    quiet_libraries()
    try:
        for name in ("peft", "accelerate"):
            import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs peft and accelerate ({error}). Install them: pip install 'lvlm-guard[train]'."
        ) from error


def called(folder: Path, seeds: tuple[int, ...], device: str, start_over: bool, **more: Any) -> Any:
    """Return a `lvlm_guard.adapters.training.recipe.Call` of this command line."""
    call = import_module("lvlm_guard.adapters.training.recipe").Call
    return call(folder, seeds, device, start_over, say, progress, line(), environment(), **more)


def told_of(call: Any, work: Any) -> None:
    """Say what of a preset's work is not exact."""
    if work.lacks:
        call.told().echo(f"{work.name} (arXiv:{work.identifier}) is not exact here: {work.lacks}.")


def print_report(report: dict[str, Any]) -> None:
    """Print what a training found as the one JSON object of its command."""
    rest = {key: value for key, value in report.items() if key not in ("command", "version", "environment", "rows")}
    print_json(report["command"], report["rows"], **rest)


MOST_COLUMNS = 8
"""Of a table on a terminal; wider ones are in the report."""


def finish(call: Any, report: dict[str, Any], json: bool) -> None:
    """Print what a training found."""
    if not call.main:
        return
    if json:
        print_report(report)
        return
    told = import_module("lvlm_guard.report.comparison")
    for task, (methods, figures) in told.compared(report["rows"]).items():
        shown = Table(task, *methods, box=None)
        for metric, each in figures.items():
            shown.add_row(metric, *(escape(told.cell(row)) for row in each))
        if len(methods) <= MOST_COLUMNS:
            out().print(shown)
    for sentence in told.verdicts(report["rows"]):
        out().print(escape(sentence), soft_wrap=True)
    for folder, kept in zip(report["adapters"], report["kept"], strict=True):
        note = "  (no epoch was better than the untuned CLIP, which is kept)" if kept["kept"] == -1 else ""
        out().print(f"adapter  {escape(folder)}{note}", soft_wrap=True)
    out().print(f"report   {escape(str(call.out / 'report.html'))}", soft_wrap=True)
