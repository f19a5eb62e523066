"""`lvlm-guard eval`: judge, verify, compare, check, report, export, localize, reproduce; `eval_run` has the others."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from typer import Argument, Option

from lvlm_guard import __version__
from lvlm_guard.cli.console import FAILED, VOID, bullets, line, out, print_object, quiet_libraries, say
from lvlm_guard.cli.eval_run import FailIf, Settings, leave, rules_of, tell
from lvlm_guard.cli.options import Json, Matchers, StartOver, matchers_of
from lvlm_guard.cli.settings import COMMAS, EMBEDDED, Only, Usual

VERIFIERS = {True: ("blip-itm", "clip", "dual-prompt", "ranker"), False: ("blip-itm", "clip")}  # of the embedded model
GRID = Only(("images", "annotations", "questions", "limit", "seeds", "device", "dtype"))
DESCRIBED = Only(
    ("model", "images", "annotations", "questions", "split", "limit", "max_new_tokens", "revision", "device", "dtype")
)

_CLIP = Option(help="The untuned CLIP of the baselines: a folder or hub id; calibrated if it can be.")
_EVIDENCE = Option("--evidence", help="Collect pictures and relevance maps first; loads the run's model.")
_MODEL = Option(help="One of the paper's models, a folder of one, or embedded. [default: both]")
_ONLY = Option(help="Parts of the grid: pope, chair, coco, gqa, paper, official, ...")
_PROMPT = Option(help="The judge's prompt, with {image_content}, {question}, {gt_answer}, {model_answer}.", exists=True)

Folder = Annotated[Path, Argument(help="Folder of a run.", metavar="DIR", show_default=False)]
Share = Annotated[float | None, Option(min=0, max=1, help="As in eval run.")]


def judge(
    folder: Annotated[Path, Argument(help="A run that asked mmhal.", metavar="DIR")],
    prompt: Annotated[Path, _PROMPT],
    json: Json = False,
) -> None:
    """Write a judge's requests: chat requests as JSON lines, a file for each decoder and seed.

    No judge is built in. Its reply is a JSON file in DIR/verdicts with "judge" (model, date), "prompt_sha256" and
    "answers_sha256" (as in the requests) and "verdicts", 96 texts or chat completions in order; eval score reads it.

    [bold]Example:[/bold] lvlm-guard eval judge runs/first --prompt prompt.txt
    """
    text = prompt.read_text(encoding="utf-8")
    written = import_module("lvlm_guard.evals.tasks.mmhal").write_requests(folder, text)
    if json:
        print_object({"command": "eval judge", "version": __version__, "requests": [str(path) for path in written]})
        return
    for path in written:
        tell(requests=path)


def verify(
    settings: Annotated[Settings, DESCRIBED],
    matcher: Matchers = None,
    clip: Annotated[str, _CLIP] = "clip",
    task: Annotated[str, Option(help="world_chair, or chair (COCO). [default: as suits the model]")] = "",
    out_: Annotated[Path, Option("--out", help="Folder; a run goes on where it stopped.")] = Path("verify-out"),
    batch: Annotated[int, Option(min=1, help="Pictures at once."), Usual(1, embedded=64)] = 1,
    start_over: StartOver = False,
    json: Json = False,
) -> None:
    """Measure how well verifiers tell named objects that are there from hallucinated ones.

    The plain model describes pictures; every verifier is asked about each object named: the matchers, as
    --verify asks them, beside calibrated CLIP, CLIP-guided decoding's detector, F-CLIPScore and the model's
    own token probability. Writes answers.parquet and report.json; the same command goes on
    after any end, and with another --matcher asks that one alone.

    [bold]Example:[/bold] lvlm-guard eval verify --matcher dual-prompt=out/seed-0 --matcher dual-prompt=out/seed-1
    """
    quiet_libraries()
    embedded = settings.model == EMBEDDED
    matchers = matchers_of(matcher) or {name: (name,) for name in VERIFIERS[embedded]}
    room = import_module("lvlm_guard.evals.studies.verify")
    settings = replace(
        settings,
        tasks=(task or ("world_chair" if embedded else "chair"),),
        methods=(),
        batch=batch,
        # the guard's default judge stands beside whatever is measured
        matchers={"blip-itm": ("blip-itm",)} | matchers,
    )
    report = room.verify_run(settings, out_, clip, echo=say, started_over=start_over, line=line())
    if json:
        print_object(report)
        return
    tables = import_module("lvlm_guard.evals.report.terminal").tables(report, out().width)
    tell((), room.sentences(report)[:1])
    tell(tables, report["remarks"], report=out_ / "report.json")


def compare(
    a: Annotated[Path, Argument(help="Folder of the first run.", metavar="A", show_default=False)],
    b: Annotated[Path, Argument(help="Folder of the second; differences are B - A.", metavar="B")],
    decoder_a: Annotated[str | None, Option("--a", help="One decoder of A. [default: all in both]")] = None,
    decoder_b: Annotated[str | None, Option("--b", help="One decoder of B. [default: as --a]")] = None,
    fail_if: FailIf = (),
    json: Json = False,
) -> None:
    """Pair two runs question by question and test their differences.

    Runs that asked other questions, or with other generation settings, are refused with what differs.

    [bold]Example:[/bold] lvlm-guard eval compare runs/before runs/after --a agla
    """
    room = import_module("lvlm_guard.evals.report.compare")
    rules = rules_of(fail_if)
    found = room.compare(a, b, decoder_a=decoder_a, decoder_b=decoder_b)
    if json:
        print_object(found.to_dict())
    else:
        tell(room.tables(found, out().width), room.remarks(found))
    leave({"rows": found.rows}, rules)


def check(
    folder: Annotated[Path, Argument(help="A run, or lmms-eval's --output_path.", metavar="DIR")],
    allow_empty: Share = None,
    allow_truncated: Share = None,
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
        tell((), room.sentences(found))
    if found.outcome != "ok":
        raise typer.Exit(VOID if found.outcome == "void" else FAILED)


def report(
    folder: Folder,
    evidence: Annotated[bool, _EVIDENCE] = False,
    json: Json = False,
) -> None:
    """Write report.html anew from a run's files; needs no model.

    [bold]Example:[/bold] lvlm-guard eval report runs/first
    """
    if evidence:
        quiet_libraries()
        import_module("lvlm_guard.evals.report.evidence").collect_for(folder)
    _wrote("eval report", json, report=import_module("lvlm_guard.evals.report.page").write_report(folder))


def export(
    folder: Folder,
    to: Annotated[Path, Option(help="The file to write, tab-separated.", metavar="FILE")],
    decoder: Annotated[str, Option(help="Whose answers.")] = "greedy",
    seed: Annotated[int, Option(min=0, help="Which of its runs.")] = 0,
    json: Json = False,
) -> None:
    """Write a decoder's answers as VLMEvalKit reads them.

    [bold]Example:[/bold] lvlm-guard eval export runs/first --decoder agla --to agla.tsv
    """
    room = import_module("lvlm_guard.evals.report.saved")
    _wrote("eval export", json, answers=room.export_answers(room.read_run(folder), decoder, to, seed))


def localize(
    task: Annotated[str, Argument(help="A task of lmms-eval: pope_adv, mme, coco_cap_chair, ...")],
    data: Annotated[Path, Argument(help="POPE's question file; or JSON, JSON lines, parquet.", metavar="FILE")],
    out_: Annotated[Path, Option("--out", help="Folder for the task.")] = Path("tasks_local"),
    images: Annotated[Path | None, Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    name: Annotated[str, Option(help="Of the new task. [default: TASK_local]")] = "",
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
    paper: Annotated[Literal["agla"], Argument(help="Whose tables.")],
    settings: Annotated[Settings, GRID],
    model: Annotated[str | None, _MODEL] = None,
    only: Annotated[tuple[str, ...], COMMAS, _ONLY] = (),
    out_: Annotated[Path, Option("--out", help="Folder; goes on where it stopped.")] = Path("reproduce-out"),
    dry_run: Annotated[bool, Option("--dry-run", help="List downloads, sizes and hours, and end.")] = False,
    allow_truncated: Annotated[float, Option(min=0, max=1, help="As in eval run.")] = 0.0,
    workers: Annotated[int | None, Option(min=1, help="As in eval run.")] = None,
    json: Json = False,
) -> None:
    """Run a paper's grid and print measured beside published.

    LLaVA-1.5-7B and InstructBLIP, POPE on three data sets, CHAIR, three seeds, in paper and official
    mode. With --model embedded the same grid runs on the embedded world. Questions that are not given are fetched.

    [bold]Example:[/bold] lvlm-guard eval reproduce agla --dry-run
    """
    quiet_libraries()
    room = import_module("lvlm_guard.evals.studies.reproduce")
    base = replace(settings, captions=settings.limit)
    if dry_run:
        planned = room.dry_run(model, only, base)
        if json:
            print_object(planned)
        else:
            tell([room.dry_run_table(planned, out().width)], room.sentences(planned))
        return
    allowed = import_module("lvlm_guard.evals.stats.validity").Allowed(truncated=allow_truncated)
    found = room.reproduce(out_, model, only, base, echo=say, workers=workers, allowed=allowed)
    if json:
        print_object(found)
    else:
        tell(room.reproduce_tables(found, out().width), found["notes"], runs=out_)
    leave({"void": found["void"], "rows": found["rows"]})


def _wrote(command: str, json: bool, **places: Path) -> None:
    if json:
        told = {what: str(place) for what, place in places.items()}
        print_object({"command": command, "version": __version__, **told})
    else:
        tell(**places)
