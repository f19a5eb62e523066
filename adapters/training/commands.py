"""`lvlm-guard train claims`, `dual-prompt` and `ranker`: a matcher is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from rich.table import Table
from typer import Option

from lvlm_guard.adapters.commands import Config, Seeds, print_report, ready
from lvlm_guard.adapters.ranker.settings import Plan, RankerSettings
from lvlm_guard.adapters.training.recipe import Call, Optimizer, Recipe
from lvlm_guard.cli.console import out, usage
from lvlm_guard.cli.options import Json, StartOver
from lvlm_guard.cli.settings import EMBEDDED, Usual

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

    def call(self, folder: Path, compare: bool, usual: int) -> Call:
        """Return how this command asks; `usual` are the test pictures of the embedded world."""
        pictures = self.test_pictures or (usual if self.world else None)
        how: dict[str, Any] = {"workers": self.workers, "report_to": self.report_to}
        return Call(folder, self.seeds, self.device, self.start_over, compare=compare, pictures=pictures, **how)

    def facts(self, call: Call, world: str = "world") -> Any:
        """Return the facts of --data, with the first training pictures alone, and tell what they hold."""
        from lvlm_guard.adapters.data import open_facts

        pairs = [column.partition("=") for column in self.column]
        if any(not (name and theirs) for name, _, theirs in pairs):
            raise usage("--column: give KEY=COLUMN, such as captions=sentences.")
        columns = {name: theirs for name, _, theirs in pairs} or None
        place = world if self.world else self.data
        facts = open_facts(place, columns=columns, images=self.images, on_bad=self.on_bad).first(self.pictures)
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


Steps = Annotated[int | None, Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")]
Validation = Annotated[int | None, Option(min=2, help="Validation pictures to measure on."), Usual(None, embedded=200)]


def _rate(default: str = "") -> Any:
    return Option("--rate", "--lr", min=1e-9, help=f"Peak learning rate.{default}")


_INIT = Option(help="Adapters of the same prompts whose mean is started from. Repeatable.", metavar="FOLDER")
_TEACHER = Option(help="A larger CLIP for caspl to learn from first, a folder or hub id.", metavar="CLIP")
_BANK = Option(help="JSON file of sentences about objects, for cupl, kapt.", metavar="FILE")
_PROPOSER = Option(help="Command of an LLM for ipo and glov: message in, prompts out, one a line.", metavar="COMMAND")


@dataclass(frozen=True)
class Given:
    """What a plan is given, whatever the preset."""

    init: Annotated[tuple[str, ...], _INIT] = ()
    teacher: Annotated[str, _TEACHER] = ""
    bank: Annotated[str, _BANK] = ""
    proposer: Annotated[str, _PROPOSER] = ""


def claims(
    given: Given,
    training: Training,
    recipe: partial[Recipe],
    preset: Annotated[
        list[str] | None, Option(help="A published work; `train presets` lists them. Repeatable. [default: dcar]")
    ] = None,
    out: Annotated[Path, Option(help="A folder in it for each preset; goes on where it stopped.")] = Path("claims"),
    epochs: Annotated[int | None, Option(min=1, help="Over the pairs. [default: the work's]")] = None,
    steps: Steps = None,
    rate: Annotated[float | None, _rate(" [default: the work's]")] = None,
    weight: Annotated[float, Option(min=0, help="Of the loss on claims, beside the work's own losses.")] = 1.0,
    novel: Annotated[float, Option(min=0, max=0.9, help="Share of objects about which no claim is trained.")] = 0.25,
    depth: Annotated[int | None, Option(min=1, help="Layers with prompts. [default: the work's]")] = None,
    validation: Validation = None,
    compare: Annotated[
        bool, Option("--compare", help="Measure all presets, and CLIP as it is, on the test part.")
    ] = False,
) -> None:
    """Train published ways of adapting CLIP to judge claims: "a photo of a dog".

    Facts say which claims hold of which pictures and which don't; what they don't say is unknown. Each preset has its
    own losses, rate and length. Stopped at any moment, the same command goes on.

    [bold]Example:[/bold] lvlm-guard train claims --preset maple --preset promptsrc --data facts.jsonl --compare
    """
    ready()
    from lvlm_guard.adapters import presets
    from lvlm_guard.adapters.training import dual_prompt, free, runs

    names = preset or ["dcar"]
    if len(set(names)) < len(names):
        raise usage(f"--preset {', '.join(names)}: give each once.")
    works = [presets.preset(name) for name in names]  # a wrong name is found before anything is read
    for work in works:
        free.ready(replace(work.plan, **asdict(given)))  # so is what its turn would lack, hours later
    call = training.call(out, compare, 400)
    facts = training.facts(call)
    plans = {}
    for work in works:
        losses = replace(work.plan.losses, claims=weight)
        plan = replace(work.plan, clip=training.clip, losses=losses, **asdict(given))
        plans[work.name] = plan if depth is None else replace(plan, depth=depth)
        facts = dual_prompt.fitting(plans[work.name], facts)
        _told_of(call, work)
    withheld = dual_prompt.withheld(facts.captions, novel)
    chosen = {}
    for work in works:
        passes = epochs or (None if training.world else work.epochs)
        own: dict[str, Any] = {"rate": rate or work.rate, "optimizer": work.optimizer}
        how = training.recipe(recipe, facts.captions, passes, steps, 160, **own)
        chosen[work.name] = (replace(plans[work.name], withheld=withheld), how)
    _finish(call, runs.train_retrievers(call, facts.captions, chosen, validation), training.json)


_STRENGTH = Option("--lambda", min=0, help="Strength of word weights in the loss against swaps; 0: none.")
_CLAIMS = Option(min=0, help='Weight of judging "a photo of a dog", as the guard asks; costs recall.')
_NEGCLIP = Option("--negclip/--no-negclip", help="Swaps of all captions against each picture. [default: embedded]")


@dataclass(frozen=True)
class Sizes:
    """Of prompts, where they are not the configuration's own."""

    depth: Annotated[int | None, Option(min=1, help="Layers with prompts. [default: 9, at most the CLIP's]")] = None
    n_ctx: Annotated[int | None, Option(min=1, help="Prompts of a layer. [default: 4; maple 2]")] = None
    coupling_rank: Annotated[int | None, Option(min=0, help="Of text to vision; 0: full. [default: 16]")] = None


@dataclass(frozen=True)
class Losses:
    """Weights of a `LossStack`."""

    alpha: Annotated[float, Option(min=0, help="Extra weight of negatives of the same category.")] = 0.5
    hard_negative: Annotated[float, Option("--hard", min=0, help="Weight of the loss against swaps.")] = 1.0
    claims: Annotated[float, _CLAIMS] = 0.0
    consistency: Annotated[float, Option(min=0, help="Weight of staying near the frozen features.")] = 0.0


def dual_prompt(
    training: Training,
    recipe: partial[Recipe],
    sizes: Sizes,
    losses: Losses,
    out: Annotated[Path, Option(help="Folder; goes on where it stopped.")] = Path("dual-prompt"),
    epochs: Annotated[int | None, Option(min=1, help="Over the pairs. [default: 10]")] = None,
    steps: Steps = None,
    rate: Annotated[float | None, _rate(" [default: 1e-3 for adamw, 3.5e-3 for sgd; embedded 2e-2]")] = None,
    optimizer: Annotated[Optimizer, Option(help="sgd suits --coupling-rank 0.")] = "adamw",
    preset: Annotated[
        str | None, Option(help="A published work's prompts, losses and rate; `train presets` lists them.")
    ] = None,
    prompts: Annotated[str, Option(help="dual-prompt, maple, independent, coop or vpt.")] = "dual-prompt",
    weights: Annotated[float, _STRENGTH] = 0.0,
    negclip: Annotated[bool | None, _NEGCLIP] = None,
    alike: Annotated[int, Option(min=1, help="Pairs of a category in a batch together."), Usual(1, embedded=4)] = 1,
    validation: Validation = None,
    compare: Annotated[
        bool, Option("--compare", help="Train CoOp and MaPLe too, and measure all on the test part.")
    ] = False,
) -> None:
    """Train prompts that let a CLIP tell categories, colours and numbers apart.

    DCAR's dual prompts as a PEFT adapter, kept by recall and swaps on validation; where no epoch is better
    than the untuned CLIP, that is kept, and said. `--data` is a file of facts, a folder, .tar shards or
    hf:owner/name; `python -m lvlm_guard.adapters.data --help` converts published layouts. Stopped at any
    moment, the same command goes on. On several GPUs: accelerate launch -m lvlm_guard train dual-prompt ...

    [bold]Example:[/bold] lvlm-guard train dual-prompt --data captions.jsonl --clip openai/clip-vit-base-patch32
    """
    ready()
    from lvlm_guard.adapters import presets
    from lvlm_guard.adapters.losses import LossStack
    from lvlm_guard.adapters.training import dual_prompt, runs

    call = training.call(out, compare, 400)
    facts = training.facts(call)
    given = {name: size for name, size in asdict(sizes).items() if size is not None} | {"clip": training.clip}
    if preset is not None:
        work = presets.preset(preset)
        plan = replace(work.plan, **given)
        optimizer, rate, epochs = work.optimizer, rate or work.rate, epochs or work.epochs
        _told_of(call, work)
    else:
        terms = LossStack(**asdict(losses), negclip=training.world if negclip is None else negclip)
        plan = dual_prompt.Plan(**given, prompts=prompts, strength=weights, losses=terms, alike=alike)
    facts = dual_prompt.fitting(plan, facts)
    rate = rate or (2e-2 if training.world else 3.5e-3 if optimizer == "sgd" else 1e-3)
    how = training.recipe(recipe, facts.captions, epochs, steps, 160, rate=rate, optimizer=optimizer)
    report = runs.train_retrievers(call, facts.captions, {"dual-prompt": (plan, how)}, validation)
    _finish(call, report, training.json)


SMALL: dict[str, Any] = {"prompts": 4, "fusion_layers": 1, "post_layers": 1, "dropout": 0.0}
"""Of the ranker, beside its width, where the tiny CLIP is enough and minutes count."""

_OBJECTS = Option(help="Order by these alone, comma-separated. [default: all; embedded: the 12 that are counted to 6]")


def ranker(
    training: Training,
    recipe: partial[Recipe],
    sizes: partial[RankerSettings],
    plan: partial[Plan],
    out: Annotated[Path, Option(help="Folder; goes on where it stopped.")] = Path("ranker"),
    by: Annotated[Literal["count", "size", "brightness"], Option(help="Order of --data embedded.")] = "count",
    objects: Annotated[str | None, _OBJECTS] = None,
    instruction: Annotated[str | None, Option(help="What is asked, {object} where the name goes.")] = None,
    lonely: Annotated[Literal["raise", "skip"], Option(help="Objects whose pictures all have one value.")] = "raise",
    epochs: Annotated[int | None, Option(min=1, help="Over the values. [default: 10]")] = None,
    steps: Annotated[int | None, Option(min=1, help="Of training, instead of --epochs. [embedded: 500]")] = None,
    rate: Annotated[float, _rate(), Usual(5e-5, embedded=2e-3)] = 5e-5,
    compare: Annotated[bool, Option("--compare", help="Measure beside zero-shot CLIP and a linear probe.")] = False,
) -> None:
    """Train a CLIP to order pictures by how much of something they show: counts, sizes, quality, age.

    The ranking-aware adapter as a PEFT adapter, kept by its order on validation (SRCC, ties by MAE). `--data`
    is a file of facts, a folder, .tar shards or hf:owner/name; `python -m lvlm_guard.adapters.data --help`
    converts published layouts. Stopped at any moment, the same command goes on. On several GPUs:
    accelerate launch -m lvlm_guard train ranker ...

    [bold]Example:[/bold] lvlm-guard train ranker --data counts.jsonl --clip openai/clip-vit-base-patch16
    """
    ready()
    from lvlm_guard.adapters.training import runs
    from lvlm_guard.embedded.captioned import COUNTED

    world = training.world
    call = training.call(out, compare, 500)
    facts = training.facts(call, f"world:{by}")
    opened = (facts if instruction is None else replace(facts, template=instruction)).ranks
    names = objects.split(",") if objects else COUNTED if world and by == "count" else None
    if names is not None:
        opened = opened.about([name.strip() for name in names])
    opened = opened.teaching("skip" if world else lonely)
    planned = plan(clip=training.clip, settings=sizes(**SMALL if world else {}))
    many = call.state.num_processes  # of groups each process takes one at least
    recipe = partial(recipe, accumulate=-(-recipe.keywords["accumulate"] // many) * many)
    how = training.recipe(recipe, opened, epochs, steps, 500, 8, narrow=False, rate=rate)
    _finish(call, runs.train_ranker(call, opened, planned, how), training.json)


def _told_of(call: Call, work: Any) -> None:
    """Say what of a preset's work is not exact."""
    if work.lacks:
        call.told().echo(f"{work.name} (arXiv:{work.identifier}) is not exact here: {work.lacks}.")


MOST_COLUMNS = 8
"""Of a table on a terminal; wider ones are in the report."""


def _finish(call: Call, report: dict[str, Any], json: bool) -> None:
    """Print what a training found."""
    if not call.main:
        return
    if json:
        print_report(report)
        return
    from lvlm_guard.report.comparison import cell, compared, verdicts

    for task, (methods, figures) in compared(report["rows"]).items():
        shown = Table(task, *methods, box=None)
        for metric, each in figures.items():
            shown.add_row(metric, *(escape(cell(row)) for row in each))
        if len(methods) <= MOST_COLUMNS:
            out().print(shown)
    for sentence in verdicts(report["rows"]):
        out().print(escape(sentence), soft_wrap=True)
    for folder, kept in zip(report["adapters"], report["kept"], strict=True):
        note = "  (no epoch was better than the untuned CLIP, which is kept)" if kept["kept"] == -1 else ""
        out().print(f"adapter  {escape(folder)}{note}", soft_wrap=True)
    out().print(f"report   {escape(str(call.out / 'report.html'))}", soft_wrap=True)
