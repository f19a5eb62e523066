"""`lvlm-guard eval`: ask, score, run, verify, compare, check, report, export, localize, reproduce."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from lvlm_guard import __version__
from lvlm_guard.cli.console import (
    FAILED,
    VOID,
    bullets,
    out,
    print_object,
    quiet_libraries,
    reporting,
    say,
)
from lvlm_guard.cli.eval_judge import judge
from lvlm_guard.cli.eval_run import ask, leave, rules_of, run
from lvlm_guard.cli.eval_score import score
from lvlm_guard.cli.eval_verify import verify
from lvlm_guard.cli.options import Device, Dtype, Json

evaluation = typer.Typer(
    name="eval",
    help="Measure what a method does to hallucination, with intervals, controls and cost.\n\n"
    "[bold]Example:[/bold] lvlm-guard eval run --quick",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)

Folder = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="DIR", show_default=False)]


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of the first run.", metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Folder of the second; differences are B - A.", metavar="B")],
    decoder_a: Annotated[str | None, typer.Option("--a", help="One decoder of A. [default: all in both]")] = None,
    decoder_b: Annotated[str | None, typer.Option("--b", help="One decoder of B. [default: as --a]")] = None,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit 1 where it holds, e.g. 'accuracy_diff<-0.01'. Repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Pair two runs question by question and test their differences.

    Runs that asked other questions, or with other generation settings, are refused with what differs.

    [bold]Example:[/bold] lvlm-guard eval compare runs/before runs/after --a agla
    """
    room = import_module("lvlm_guard.evals.report.compare")
    rules = rules_of(fail_if or ())
    found = room.compare(a, b, decoder_a=decoder_a, decoder_b=decoder_b)
    if json:
        print_object(found.to_dict())
    else:
        shown = out()
        for table in room.tables(found, shown.width):
            shown.print(table)
        for sentence in room.remarks(found):
            shown.print(escape(sentence))
    leave({"rows": found.rows}, rules)


def check(
    folder: Annotated[Path, typer.Argument(help="A run, or lmms-eval's --output_path.", metavar="DIR")],
    allow_empty: Annotated[float | None, typer.Option(min=0, max=1, help="As in eval run.")] = None,
    allow_truncated: Annotated[float | None, typer.Option(min=0, max=1, help="As in eval run.")] = None,
    json: Json = False,
) -> None:
    """Compute a run again from its answers, and find answers that can't be scored.

    Of stock lmms-eval too, whose command line exits 0 on everything. Exit code 1: the files don't fit
    together; 3: the answers can't be scored.

    [bold]Example:[/bold] lvlm-guard eval check runs/first
    """
    room = import_module("lvlm_guard.evals.report.check")
    found = room.check(folder, allow_empty=allow_empty, allow_truncated=allow_truncated)
    if json:
        print_object(found.to_dict())
    else:
        for sentence in room.sentences(found):
            out().print(escape(sentence))
    if found.outcome != "ok":
        raise typer.Exit(VOID if found.outcome == "void" else FAILED)


def report(
    folder: Folder,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="Collect pictures and relevance maps first; loads the run's model.")
    ] = False,
    json: Json = False,
) -> None:
    """Write report.html anew from a run's files; needs no model.

    [bold]Example:[/bold] lvlm-guard eval report runs/first
    """
    if evidence:
        quiet_libraries()
        import_module("lvlm_guard.evals.report.evidence").collect_for(folder)
    _wrote("eval report", "report", import_module("lvlm_guard.evals.report.page").write_report(folder), json)


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="The file to write, tab-separated.", metavar="FILE")],
    decoder: Annotated[str, typer.Option(help="Whose answers.")] = "greedy",
    seed: Annotated[int, typer.Option(min=0, help="Which of its runs.")] = 0,
    json: Json = False,
) -> None:
    """Write a decoder's answers as VLMEvalKit reads them.

    [bold]Example:[/bold] lvlm-guard eval export runs/first --decoder agla --to agla.tsv
    """
    room = import_module("lvlm_guard.evals.report.saved")
    _wrote("eval export", "answers", room.export_answers(room.read_run(folder), decoder, to, seed), json)


def localize(
    task: Annotated[str, typer.Argument(help="A task of lmms-eval: pope_adv, mme, coco_cap_chair, ...")],
    data: Annotated[Path, typer.Argument(help="POPE's question file; or JSON, JSON lines, parquet.", metavar="FILE")],
    out_: Annotated[Path, typer.Option("--out", help="Folder for the task.")] = Path("tasks_local"),
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    name: Annotated[str, typer.Option(help="Of the new task. [default: TASK_local]")] = "",
    json: Json = False,
) -> None:
    """Write a task for lmms-eval that asks a stock task's questions about files of one's own, offline.

    [bold]Example:[/bold] lvlm-guard eval localize pope_adv coco_pope_adversarial.json --images val2014
    """
    made = import_module("lvlm_guard.evals.lmms.localize").localize(task, data, out_, images=images, name=name)
    if json:
        told = {"task": made.name, "folder": str(made.folder), "documents": made.documents, "notes": made.notes}
        print_object({"command": "eval localize", "version": __version__, **told})
        return
    bullets(made.notes)
    say(f"{made.documents} documents in {made.task}")
    out().print(f"lmms-eval --include_path {escape(str(made.folder))} --tasks {escape(made.name)}", soft_wrap=True)


def reproduce(
    paper: Annotated[Literal["agla"], typer.Argument(help="Whose tables.")],
    model: Annotated[
        str | None, typer.Option(help="One of the paper's models, a folder of one, or embedded. [default: both]")
    ] = None,
    only: Annotated[str, typer.Option(help="Parts of the grid: pope, chair, coco, gqa, paper, official, ...")] = "",
    out_: Annotated[Path, typer.Option("--out", help="Folder; goes on where it stopped.")] = Path("reproduce-out"),
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's annotations, or a CHAIR ground truth.")] = None,
    questions: Annotated[list[Path] | None, typer.Option(help="Question files or folders. [default: fetched]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures of each run: a first look.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of whatever is sampled; the paper has 3.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List downloads, sizes and hours, and end.")] = False,
    allow_truncated: Annotated[float, typer.Option(min=0, max=1, help="As in eval run.")] = 0.0,
    workers: Annotated[int | None, typer.Option(min=1, help="As in eval run.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Run a paper's grid and print measured beside published.

    LLaVA-1.5-7B and InstructBLIP, POPE on three data sets, CHAIR, three seeds, in paper and official
    mode. With --model embedded the same grid runs on the embedded world.

    [bold]Example:[/bold] lvlm-guard eval reproduce agla --dry-run
    """
    quiet_libraries()
    room = import_module("lvlm_guard.evals.studies.reproduce")
    base = import_module("lvlm_guard.evals.spec.settings").Settings(
        images=str(images or ""),
        annotations=str(annotations or ""),
        questions=tuple(str(path) for path in questions or ()),
        limit=limit,
        captions=limit,
        seeds=seeds,
        device=device,
        dtype=dtype,
    )
    parts = tuple(name.strip() for name in only.split(",") if name.strip())
    shown = out()
    if dry_run:
        planned = room.dry_run(model, parts, base)
        if json:
            print_object(planned)
            return
        shown.print(room.dry_run_table(planned, shown.width))
        for sentence in room.sentences(planned):
            shown.print(escape(sentence))
        return
    allowed = import_module("lvlm_guard.evals.stats.score").Allowed(truncated=allow_truncated)
    found = room.reproduce(out_, model, parts, base, echo=say, workers=workers, allowed=allowed)
    if json:
        print_object(found)
    else:
        for table in room.reproduce_tables(found, shown.width):
            shown.print(table)
        for sentence in found["notes"]:
            shown.print(escape(sentence))
        shown.print(f"runs  {escape(str(out_))}", soft_wrap=True)
    leave({"void": found["void"], "rows": found["rows"]})


def _wrote(command: str, what: str, path: Path, json: bool) -> None:
    if json:
        print_object({"command": command, "version": __version__, what: str(path)})
    else:
        out().print(f"{what}  {escape(str(path))}", soft_wrap=True)


for command in (ask, run, score, judge, verify, compare, check, report, export, localize, reproduce):
    evaluation.command(command.__name__)(reporting(command))
