"""`lvlm-guard train distill`."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table
from typer import Option

from lvlm_guard.adapters.commands import Config, Seeds, print_report, ready
from lvlm_guard.adapters.distill.lessons import Lessons, Recipe
from lvlm_guard.adapters.training.recipe import Call
from lvlm_guard.cli.console import out, say, usage
from lvlm_guard.cli.options import WORLD_ONLY, Device, Json, Knobs, StartOver, checked_knobs, objects_of
from lvlm_guard.cli.settings import EMBEDDED, Usual
from lvlm_guard.matching.vocabulary import Vocabulary

QUESTION = "is there {article} {object} in the image ?"

_PROMPTS = Option(help="A prompt a line; {article} {object} stand for each object. [default: captions, is-there-a]")
_OBJECTS = Option(help="List of objects to ask about. [default: COCO's 80, the world's 54]")
_OTHER = Option(help="Prompts not trained on, a line each, to see what changes elsewhere.")
_QUESTIONS = Option(min=0, help="Objects asked about in each picture. [default: 16; embedded all]")
_MEASURE = Option("--measure/--no-measure", help="Embedded: POPE and CHAIR of plain, distilled and guarded.")


TASKS = ("world_pope", "world_chair")
BY_SEED = (
    *((f"pope_{kind}", "accuracy") for kind in ("random", "popular", "adversarial", "all")),
    *(("chair", metric) for metric in ("chair_s", "chair_i", "object_recall")),
)


def distill(
    lessons: partial[Lessons],
    recipe: partial[Recipe],
    out_: Annotated[Path, Option("--out", help="Folder; goes on where it stopped.")] = Path("distilled"),
    knob: Knobs = None,
    prompts: Annotated[Path | None, _PROMPTS] = None,
    objects: Annotated[str | None, _OBJECTS] = None,
    other_prompts: Annotated[Path | None, _OTHER] = None,
    questions: Annotated[int | None, _QUESTIONS] = None,
    at_once: Annotated[int, Option(min=1, help="Prompts of one generate() call."), Usual(8, embedded=256)] = 8,
    seeds: Seeds = (0,),
    measure: Annotated[bool, _MEASURE] = True,
    start_over: StartOver = False,
    retrain: Annotated[bool, Option("--retrain", help="Keep the answers, train anew.")] = False,
    device: Device = "auto",
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a LoRA that makes the plain model answer as the guarded one does.

    The guarded model answers about pictures without labels; a stock PEFT LoRA learns its answers. The
    result is a tuned model at the plain model's cost: nothing guards it any more. Stopped at any moment,
    the same command goes on. On several GPUs: accelerate launch -m lvlm_guard train distill ...

    [bold]Example:[/bold] lvlm-guard train distill --model llava-hf/llava-1.5-7b-hf --images photos --out distilled
    """
    ready()
    from lvlm_guard.adapters.distill import run
    from lvlm_guard.embedded.world import CAPTION_PROMPT

    model, method = lessons.keywords["model"], lessons.keywords["method"]
    world = model == EMBEDDED
    knobs = checked_knobs(method, knob)  # a wrong one is found before anything is loaded
    source = objects_of(objects, model)
    names = () if source is None else tuple(",".join(words) for _, words in Vocabulary.of(source).objects)
    # of the embedded model: it has words for no other
    given: dict[str, Any] = {"prompts": (CAPTION_PROMPT, QUESTION), "other": ()} if world else {}
    given |= {name: _lines(path) for name, path in (("prompts", prompts), ("other", other_prompts)) if path}
    asked = lessons(
        knobs=knobs,
        objects=names,
        questions=questions if questions is not None else len(names) if world else 16,
        **given,
    )
    how = recipe(alpha=2 * recipe.keywords["rank"])
    call = Call(out_, seeds, device, start_over)
    report = run.distill(asked, how, call, at_once=at_once, retrain=retrain)
    if not call.main:
        return
    report["remarks"] = [WORLD_ONLY] if world and asked.images else []
    if world and measure:
        report["rows"] += _measured(out_, asked, report, device)
    page = run.keep_report(out_, report)
    if json:
        print_report(report)
        return
    _show(report)
    for folder in report["adapters"]:
        out().print(f"adapter  {escape(folder)}", soft_wrap=True)
    out().print(f"report   {escape(str(page))}", soft_wrap=True)
    if not world:
        adapters = " ".join(f"--adapter distilled={folder}" for folder in report["adapters"])
        say(f"With labels: lvlm-guard eval run --model {model} {adapters} --methods {method} --tasks pope_coco ...")


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"{path} can't be read ({error}): give a text file with a prompt a line.") from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise usage(f"{path} holds no prompt: write one a line.")
    return found


def _measured(place: Path, lessons: Any, report: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Run plain, distilled and guarded on the embedded world's test split; returns the rows, and notes each seed's."""
    room = import_module("lvlm_guard.evals.infer.ask")
    settings = import_module("lvlm_guard.evals.spec.settings").Settings(
        tasks=TASKS,
        methods=(lessons.method,),
        knobs={lessons.method: lessons.knobs},
        controls=False,
        adapters=tuple(f"distilled={folder}" for folder in report["adapters"]),
        batch=room.MANY,
        device=device,
    )
    folder = room.ask(settings, place / "eval", echo=say, replaces=True)
    rows = import_module("lvlm_guard.evals.stats.score").score(folder)["rows"]
    say(f"Report: {import_module('lvlm_guard.evals.report.page').write_report(folder)}")
    report["by_seed"] = [
        {"seed": seed, "task": row["task"], "metric": row["metric"], "value": value}
        for row in rows
        if (row["decoder"], row["baseline"]) == ("distilled", None) and (row["task"], row["metric"]) in BY_SEED
        for seed, value in zip(report["seeds"], row.get("trainings", [row["value"]]), strict=True)
    ]
    return [row | {"method": "-".join(filter(None, (row["decoder"], row["baseline"])))} for row in rows]


def _show(report: dict[str, Any]) -> None:
    from lvlm_guard.adapters.distill.run import side_by_side

    shown = Table("", "plain", "distilled", report["lessons"]["method"], "distilled - plain, 95 %", box=None)
    for what, *three, difference in side_by_side(report):
        ends = (
            ""
            if difference is None
            else f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        )
        shown.add_row(what, *("" if row is None else f"{row['value']:.3f}" for row in three), escape(ends))
    out().print(shown)
