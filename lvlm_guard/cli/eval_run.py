"""`lvlm-guard eval ask` and `eval run`: asking, and the three steps in one; how results are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from lvlm_guard import __version__
from lvlm_guard.cli.console import FAILED, VOID, err, out, print_object, quiet_libraries, say, usage
from lvlm_guard.cli.options import (
    Device,
    Dtype,
    Execution,
    Json,
    Matchers,
    Model,
    knob_value,
    matchers_of,
    with_options_of,
)
from lvlm_guard.ranks import Place

WORLD_TASKS, METHODS = "world_pope,world_chair", "agla,focus,vote,vcd"
QUICK = 24  # pictures of each task


def ask(
    model: Model = "embedded",
    methods: Annotated[str, typer.Option(help="Methods, comma-separated; greedy is always there.")] = METHODS,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: world_pope, world_chair, pope_coco, pope_aokvqa, pope_gqa, pope (own --questions), "
            "chair, opope, mme_hallucination, amber, amber_captions, dash_b, mmhal, or one of lmms-eval (mmstar, ...)."
        ),
    ] = WORLD_TASKS,
    out_: Annotated[Path, typer.Option("--out", help="Folder; a run goes on where it stopped.")] = Path("eval-out"),
    knob: Annotated[
        list[str] | None, typer.Option(help="A method's knob, e.g. agla.alpha=1.5. Repeatable.", metavar="M.NAME=VALUE")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values of a knob, e.g. alpha=0.5,1,2. Repeatable. On --split val only.", metavar="NAME=V,V"),
    ] = None,
    split: Annotated[Literal["test", "val"], typer.Option(help="val is for choosing settings.")] = "test",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of whatever is random.")] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures of each task.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Pictures to caption, where other than --limit.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer. [default: the task's]")] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="Questions: POPE's files or folder, DASH-B's, ...; a list to caption. Repeatable."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's annotations, a CHAIR ground truth; AMBER's.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A PEFT adapter of the model: its plain answers stand beside the methods. Several of one NAME are its "
            "seeds. Repeatable.",
            metavar="NAME=DIR",
        ),
    ] = None,
    matcher: Matchers = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="Folder with tasks of lmms-eval. Repeatable.")] = None,
    preset: Annotated[Literal["", "paper-agla"], typer.Option(help="Prompt and sampling of a publication.")] = "",
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Sampling, APC-only, and the methods' own controls.")
    ] = True,
    server: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint that has --model.", metavar="URL")] = "",
    batch: Annotated[int | None, typer.Option(min=1, help="Questions at once. [default: 1; embedded 64]")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests in flight at a server. [default: 16]")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: 1; embedded one a core]")] = None,
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures, one seed: shows that it works.")] = False,
    revision: Annotated[str, typer.Option(help="Of --model on the hub.")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    execution: Execution = "auto",
    json: Json = False,
) -> None:
    """Ask several decoders the same questions, and write their answers as one table.

    Greedy, sampling, controls and each method's own stand beside the methods. Answers are kept as they come, and the
    same command goes on after any end, and asks what failed again. Exit code 3: every request failed. On several GPUs
    or machines, which share --out, torchrun starts it:

    torchrun --nproc-per-node 8 -m lvlm_guard eval ask --model ID --out runs/first

    [bold]Example:[/bold] lvlm-guard eval ask --methods agla,vote --out runs/first
    """
    options = locals()
    folder = _asked(options, "eval ask")
    whole, total, failed, why = (folder / "answers.parquet").exists(), None, None, ""
    if whole:
        total, failed, why = import_module("lvlm_guard.evals.infer.store").failures(folder)
    if failed:
        say(
            f"{failed} of {total} answers failed, the first as {why.rstrip('.')}. The same command asks for them again."
        )
    if json:
        told = {"command": "eval ask", "version": __version__, "folder": str(folder), "whole": whole}
        print_object(told | {"failed": failed})
    elif whole:
        out().print(f"answers  {escape(str(folder / 'answers.parquet'))}", soft_wrap=True)
    if failed and failed == total:
        err().print("[bold red]Void:[/] every request failed, so there is nothing to score.")
        raise typer.Exit(VOID)
    if whole and not json:
        say(f"Score them: lvlm-guard eval score {folder}")


@with_options_of(ask)
def run(
    *,
    allow_empty: Annotated[float, typer.Option(min=0, max=1, help="Share of empty answers that is no void run.")] = 0.0,
    allow_truncated: Annotated[
        float, typer.Option(min=0, max=1, help="Share of answers cut at the token limit that is no void run.")
    ] = 0.0,
    dialect: Annotated[
        list[str] | None, typer.Option(help="CHAIR also as papers since OPERA read: wordnet (needs NLTK's data).")
    ] = None,
    repope: Annotated[
        str, typer.Option(help="RePOPE's folder, or fetch: POPE's answers also by its labels.", metavar="DIR|fetch")
    ] = "",
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit 1 where it holds, e.g. 'accuracy_diff<-0.01'. Repeatable.")
    ] = None,
    **options: Any,
) -> None:
    """Ask several decoders the same questions; score, test, and report them: eval ask, eval score and eval report.

    Writes answers.parquet, results.json and report.html; answers are kept as they come, and the same command goes on
    after any end. Exit code 3: answers are empty, failed or cut, so the scores would mislead.

    [bold]Example:[/bold] lvlm-guard eval run --methods agla,vote --out runs/first
    """
    if Place.here().world > 1:
        raise usage(
            "torchrun shares out asking alone: start `eval ask` by it, then `eval score` and `eval report` once."
        )
    rules = rules_of(fail_if or ())
    for name in dialect or ():  # before anything is generated
        import_module("lvlm_guard.evals.metrics.objects").coco_words(name)
    if repope:
        import_module("lvlm_guard.evals.tasks.repope").repope_labels(repope)
    folder = _asked(options, "eval run")
    scoring = import_module("lvlm_guard.evals.stats.score")
    allowed = scoring.Allowed(allow_empty, allow_truncated)
    results = scoring.score(folder, allowed=allowed, repope=repope or None, dialects=dialect or ())
    told = import_module("lvlm_guard.evals.infer.record").read_note(folder)
    results["warnings"] = [*told["warnings"], *results["warnings"]]
    results["flags"] = [*told["flags"], *_allowances(empty=allow_empty, truncated=allow_truncated)]
    pictures = import_module("lvlm_guard.evals.report.evidence")
    if not results["void"] and not (folder / pictures.EVIDENCE / pictures.INDEX).exists():
        pictures.collect_for(folder)
    page = import_module("lvlm_guard.evals.report.page").write_report(folder)
    if options["json"]:
        print_results("eval run", results)
    else:
        shown = out()
        show(results, shown)
        shown.print(f"report  {escape(str(page))}", soft_wrap=True)
    leave(results, rules)


def _allowances(**shares: float) -> list[str]:
    return [
        f"--allow-{name} {share:g}: so large a share of {name} answers does not make the run void."
        for name, share in shares.items()
        if share
    ]


def _asked(options: Mapping[str, Any], command: str) -> Path:
    """Ask what the options of a command say; returns the run's folder."""
    quiet_libraries()
    room = import_module("lvlm_guard.evals.infer.ask")
    names, quick = _listed(options["methods"]), options["quick"]
    settings = import_module("lvlm_guard.evals.spec.settings").Settings(
        tasks=_listed(options["tasks"]),
        methods=names,
        knobs=_knobs(options["knob"] or (), names),
        sweep=_sweep(options["sweep"] or (), names),
        seeds=1 if quick else options["seeds"],
        limit=options["limit"] or (QUICK if quick else None),
        captions=options["captions"] or (QUICK if quick else None),
        questions=tuple(str(path) for path in options["questions"] or ()),
        images=str(options["images"] or ""),
        annotations=str(options["annotations"] or ""),
        include=tuple(str(path) for path in options["include_path"] or ()),
        adapters=tuple(options["adapter"] or ()),
        matchers=matchers_of(options["matcher"]),
        **{name: options[name] for name in _AS_THEY_ARE},
    )
    folder: Path = room.ask(
        replace(settings, batch=options["batch"] or room.usual_batch(settings)),
        options["out_"],
        echo=say,
        workers=options["workers"],
        concurrency=options["concurrency"],
        started_over=options["start_over"],
        command=command,
    )
    return folder


_AS_THEY_ARE = (
    *("model", "controls", "split", "device", "dtype", "execution", "preset", "max_new_tokens", "server", "revision"),
)


def _listed(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise usage(f"{text!r} names nothing: give names, comma-separated.")
    return names


def _knobs(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    from lvlm_guard.api import parts_of

    given: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        left, equals, text = pair.partition("=")
        method, dot, name = left.strip().partition(".")
        if not equals or not dot:
            raise usage(f"--knob {pair!r}: write METHOD.NAME=VALUE, such as agla.alpha=1.5.")
        if "all" not in methods and not any(method in parts_of(each) for each in methods):
            raise usage(f"--knob {pair!r}: {method!r} is none of --methods {','.join(methods)}.")
        given.setdefault(method, {})[name] = knob_value(method, name, text.strip())
    return given


def _sweep(texts: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read "alpha=0.5,1,2" and "alpha=0.5,1,beta=0.1,0.5"; a name without "=" is a further value."""
    from lvlm_guard.errors import KnobError
    from lvlm_guard.methods import REGISTRY

    values: dict[str, list[str]] = {}
    for text in texts:
        knob = ""
        for piece in text.split(","):
            name, equals, value = piece.partition("=")
            if equals:
                knob = name.strip()
            elif not knob:
                raise usage(f"--sweep {text!r}: write NAME=VALUE,VALUE, such as alpha=0.5,1,2.")
            values.setdefault(knob, []).append((value if equals else piece).strip())
    swept: dict[str, tuple[Any, ...]] = {}
    for knob, texts_ in values.items():
        for method in (name for name in methods if name in REGISTRY.names()):
            try:
                swept[knob] = tuple(dict.fromkeys(knob_value(method, knob, text) for text in texts_))
            except KnobError:
                continue
            break
        else:
            raise usage(f"--sweep {knob}: none of --methods {','.join(methods)} has this knob.")
    return swept


def rules_of(texts: Sequence[str]) -> list[Any]:
    """Read the rules of --fail-if."""
    from lvlm_guard.errors import GuardError

    try:
        return [import_module("lvlm_guard.evals.report.fail_if").fail_if(text) for text in texts]
    except GuardError as error:
        raise usage(f"--fail-if: {error}") from None


def show(results: Mapping[str, Any], shown: Console) -> None:
    """Print a run's tables and what they say; a void run has none."""
    room = import_module("lvlm_guard.evals.report.terminal")
    for table in room.tables(results, shown.width):
        shown.print(table)
    for sentence in room.sentences(results):
        shown.print(escape(sentence))
    for sentence in (*results["warnings"], *results.get("flags", ())):
        shown.print(escape(f"note: {sentence}"), style="yellow")


def print_results(command: str, results: Mapping[str, Any]) -> None:
    """Print results as the one JSON object of a command."""
    rows = [{"method": row["decoder"], **row} for row in results["rows"]]
    print_object({"command": command, "version": __version__, **results, "rows": rows})


def leave(results: Mapping[str, Any], rules: Sequence[Any] = ()) -> None:
    """Leave with the code that results deserve: 3 where they are void, 1 where a rule holds."""
    if results.get("void"):
        console = err()
        console.print("[bold red]Void:[/] nothing was scored, for the scores would mislead.")
        for reason in results["void"]:
            console.print(escape(f"  {reason}"))
        raise typer.Exit(VOID)
    held = [found for rule in rules if (found := rule(results["rows"]))]
    for sentence in held:
        err().print(f"[bold red]--fail-if:[/] {escape(sentence)}")
    if held:
        raise typer.Exit(FAILED)
