"""`lvlm-guard eval run`, and how a run is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from lvlm_guard.cli.console import FAILED, VOID, err, out, print_object, quiet_libraries, say, usage
from lvlm_guard.cli.options import Device, Dtype, Execution, Json, Matchers, Model, knob_value, matchers_of

WORLD_TASKS, METHODS = "world_pope,world_chair", "agla,vote,vcd"
QUICK = 24  # pictures of each task


def run(
    model: Model = "embedded",
    methods: Annotated[str, typer.Option(help="Methods, comma-separated; greedy is always there.")] = METHODS,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: world_pope, world_chair, pope_coco, pope_aokvqa, pope_gqa, pope (own --questions), "
            "chair, mme_hallucination, or a task of lmms-eval (mme, pope_adv, ...)."
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
        list[Path] | None, typer.Option(help="POPE question file or folder; AGLA's CHAIR list. Repeatable.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's annotations, or a CHAIR ground truth.")] = None,
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
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: 1; embedded one a core]")] = None,
    allow_empty: Annotated[float, typer.Option(min=0, max=1, help="Share of empty answers that is no void run.")] = 0.0,
    allow_truncated: Annotated[
        float, typer.Option(min=0, max=1, help="Share of answers cut at the token limit that is no void run.")
    ] = 0.0,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit 1 where it holds, e.g. 'accuracy_diff<-0.01'. Repeatable.")
    ] = None,
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures, one seed: shows that it works.")] = False,
    revision: Annotated[str, typer.Option(help="Of --model on the hub.")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    execution: Execution = "auto",
    json: Json = False,
) -> None:
    """Ask several decoders the same questions; score, test, and report them.

    Greedy, sampling, APC-only and each method's controls stand beside the methods. Writes run.json,
    samples.jsonl and report.html; answers are kept as they come, and the same command goes on after
    any end. Exit code 3: answers are empty, failed or cut, so the scores would mislead.

    [bold]Example:[/bold] lvlm-guard eval run --methods agla,vote --out runs/first
    """
    quiet_libraries()
    room = import_module("lvlm_guard.evals.infer.run")
    names = _listed(methods)
    swept = _sweep(sweep or (), names)
    if quick:
        limit, captions, seeds = limit or QUICK, captions or QUICK, 1
    settings = import_module("lvlm_guard.evals.spec.settings").Settings(
        model=model,
        tasks=_listed(tasks),
        methods=names,
        knobs=_knobs(knob or (), names),
        sweep=swept,
        controls=controls,
        seeds=seeds,
        limit=limit,
        split=split,
        device=device,
        dtype=dtype,
        execution=execution,
        preset=preset,
        questions=tuple(str(path) for path in questions or ()),
        images=str(images or ""),
        annotations=str(annotations or ""),
        include=tuple(str(path) for path in include_path or ()),
        captions=captions,
        max_new_tokens=max_new_tokens,
        server=server,
        revision=revision,
        adapters=tuple(adapter or ()),
        matchers=matchers_of(matcher),
    )
    settings = replace(settings, batch=batch or room.usual_batch(settings))
    rules = rules_of(fail_if or ())
    allowed = room.Allowed(allow_empty, allow_truncated)
    saved = room.run(settings, out_, echo=say, workers=workers, allowed=allowed, started_over=start_over)
    if json:
        print_object(saved.run)
    else:
        shown = out()
        show(saved, shown)
        shown.print(f"report  {escape(str(saved.folder / 'report.html'))}")
    leave(saved.run, rules)


def _listed(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise usage(f"{text!r} names nothing: give names, comma-separated.")
    return names


def _knobs(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        left, equals, text = pair.partition("=")
        method, dot, name = left.strip().partition(".")
        if not equals or not dot:
            raise usage(f"--knob {pair!r}: write METHOD.NAME=VALUE, such as agla.alpha=1.5.")
        if method not in methods:
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
        return [import_module("lvlm_guard.evals.report.compare.fail_if").fail_if(text) for text in texts]
    except GuardError as error:
        raise usage(f"--fail-if: {error}") from None


def show(saved: Any, shown: Console) -> None:
    """Print a run's tables and what they say; a void run has none."""
    run = saved.run
    for table in (
        [] if run["status"] == "void" else import_module("lvlm_guard.evals.report.terminal").tables(run, shown.width)
    ):
        shown.print(table)
    for sentence in import_module("lvlm_guard.evals.report.remarks").remarks(run):
        shown.print(escape(sentence))
    for sentence in (*run["warnings"], *run["flags"]):
        shown.print(escape(f"note: {sentence}"), style="yellow")


def leave(run: dict[str, Any], rules: Sequence[Any] = ()) -> None:
    """Leave with the code that a run deserves: 3 where it is void, 1 where a rule holds."""
    if run["status"] == "void":
        console = err()
        console.print("[bold red]Void:[/] nothing was scored, for the scores would mislead.")
        for reason in run["void"]:
            console.print(escape(f"  {reason}"))
        raise typer.Exit(VOID)
    held = [found for rule in rules if (found := rule(run["rows"]))]
    for sentence in held:
        err().print(f"[bold red]--fail-if:[/] {escape(sentence)}")
    if held:
        raise typer.Exit(FAILED)
