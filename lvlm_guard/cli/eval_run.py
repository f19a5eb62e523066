"""`lvlm-guard eval ask`, `run` and `score`: asking, scoring, and the steps in one; how results are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from typer import Argument, Option

from lvlm_guard import __version__
from lvlm_guard.cli.console import FAILED, VOID, err, out, print_object, quiet_libraries, say, usage
from lvlm_guard.cli.options import Json, Matchers, StartOver, knob_value, matchers_of
from lvlm_guard.cli.settings import COMMAS
from lvlm_guard.ranks import Place

if TYPE_CHECKING:
    from lvlm_guard.evals.spec.settings import Settings as Settings
else:
    Settings = import_module("lvlm_guard.evals.spec.settings").Settings

QUICK = 24  # pictures of each task

_KNOB = Option(help="A method's knob, e.g. agla.alpha=1.5. Repeatable.", metavar="M.NAME=VALUE")
_SWEEP = Option(help="Values of a knob, e.g. alpha=0.5,1,2. Repeatable. On --split val only.", metavar="NAME=V,V")
_TRUNCATED = Option(min=0, max=1, help="Share of answers cut at the token limit that is no void run.")
_DIALECT = Option(help="How CHAIR reads: ours, pattern, wordnet (papers since OPERA; with NLTK's data). Repeatable.")
_REPOPE = Option(help="RePOPE's folder, or fetch: POPE's answers also by its labels.", metavar="DIR|fetch")
_PATHS = Argument(
    help="A run's folder; or files of answers: JSON lines (ours, lmms-eval's, OPERA's, PAI's, AGLA's), .tsv or .xlsx "
    "(VLMEvalKit's). Each is a decoder, called as the file or as you say.",
    metavar="DIR|[NAME=]FILE...",
)
_QUESTIONS = Option(help="POPE's questions, where answers have no labels. Repeatable.")
_ANNOTATIONS = Option(help="COCO's annotations, or a CHAIR ground truth; AMBER's data folder.")
_WORDS = Option(min=1, help="Captions also cut after so many words.", metavar="N,N")
FailIf = Annotated[
    tuple[str, ...], Option("--fail-if", help="Exit 1 where it holds, e.g. 'accuracy_diff<-0.01'. Repeatable.")
]


@dataclass(frozen=True)
class Asking:
    """How answers are asked for: what decides none of them, or is read into the settings."""

    out: Annotated[Path, Option(help="Folder; a run goes on where it stopped.")] = Path("eval-out")
    knob: Annotated[tuple[str, ...], _KNOB] = ()
    sweep: Annotated[tuple[str, ...], _SWEEP] = ()
    matcher: Matchers = None
    batch: Annotated[int | None, Option(min=1, help="Questions at once. [default: 1; embedded 64]")] = None
    concurrency: Annotated[int | None, Option(min=1, help="Requests in flight at a server. [default: 16]")] = None
    workers: Annotated[int | None, Option(min=1, help="Processes. [default: 1; embedded one a core]")] = None
    start_over: StartOver = False
    quick: Annotated[bool, Option("--quick", help="A few pictures, one seed: shows that it works.")] = False

    def ask(self, settings: Settings, command: str) -> Path:
        """Ask what a command's options say; returns the run's folder."""
        quiet_libraries()
        room = import_module("lvlm_guard.evals.infer.ask")
        if self.quick:
            few = {"limit": settings.limit or QUICK, "captions": settings.captions or QUICK}
            settings = replace(settings, seeds=1, **few)  # type: ignore[arg-type]
        settings = replace(
            settings,
            knobs=_knobs(self.knob, settings.methods),
            sweep=_sweep(self.sweep, settings.methods),
            matchers=matchers_of(self.matcher),
        )
        how = {"workers": self.workers, "concurrency": self.concurrency, "started_over": self.start_over}
        settings = replace(settings, batch=self.batch or room.usual_batch(settings))
        folder: Path = room.ask(settings, self.out, echo=say, command=command, **how)
        return folder


@dataclass(frozen=True)
class Scoring:
    """How answers are scored, and what is no good end."""

    allow_empty: Annotated[float, Option(min=0, max=1, help="Share of empty answers that is no void run.")] = 0.0
    allow_truncated: Annotated[float, _TRUNCATED] = 0.0
    dialect: Annotated[tuple[str, ...], _DIALECT] = ()
    repope: Annotated[str, _REPOPE] = ""
    fail_if: FailIf = ()

    @property
    def allowed(self) -> Any:
        return import_module("lvlm_guard.evals.stats.validity").Allowed(self.allow_empty, self.allow_truncated)

    def score(self, folder: Path) -> dict[str, Any]:
        """Score a run's folder."""
        how = {"allowed": self.allowed, "repope": self.repope or None, "dialects": self.dialect}
        results: dict[str, Any] = import_module("lvlm_guard.evals.stats.score").score(folder, **how)
        return results


def ask(settings: Settings, asking: Asking, json: Json = False) -> None:
    """Ask several decoders the same questions, and write their answers as one table.

    Greedy, sampling, controls and each method's own stand beside the methods. Answers are kept as they come, and the
    same command goes on after any end, and asks what failed again. Exit code 3: every request failed. On several GPUs
    or machines, which share --out, torchrun starts it:

    torchrun --nproc-per-node 8 -m lvlm_guard eval ask --model ID --out runs/first

    [bold]Example:[/bold] lvlm-guard eval ask --methods agla,vote --out runs/first
    """
    folder = asking.ask(settings, "eval ask")
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
        tell(answers=folder / "answers.parquet")
    if failed and failed == total:
        err().print("[bold red]Void:[/] every request failed, so there is nothing to score.")
        raise typer.Exit(VOID)
    if whole and not json:
        say(f"Score them: lvlm-guard eval score {folder}")


def run(settings: Settings, asking: Asking, scoring: Scoring, json: Json = False) -> None:
    """Ask several decoders the same questions; score, test, and report them: eval ask, eval score and eval report.

    Writes answers.parquet, results.json and report.html; answers are kept as they come, and the same command goes on
    after any end. Exit code 3: answers are empty, failed or cut, so the scores would mislead.

    [bold]Example:[/bold] lvlm-guard eval run --methods agla,vote --out runs/first
    """
    if Place.here().world > 1:
        raise usage(
            "torchrun shares out asking alone: start `eval ask` by it, then `eval score` and `eval report` once."
        )
    rules = rules_of(scoring.fail_if)
    for name in scoring.dialect:  # before anything is generated
        import_module("lvlm_guard.evals.metrics.objects").coco_words(name)
    if scoring.repope:
        import_module("lvlm_guard.evals.tasks.repope").repope_labels(scoring.repope)
    folder = asking.ask(settings, "eval run")
    results = scoring.score(folder)
    told = import_module("lvlm_guard.evals.infer.record").read_note(folder)
    results["warnings"] = [*told["warnings"], *results["warnings"]]
    shares = {"empty": scoring.allow_empty, "truncated": scoring.allow_truncated}
    allowances = (
        f"--allow-{name} {share:g}: so large a share of {name} answers does not make the run void."
        for name, share in shares.items()
        if share
    )
    results["flags"] = [*told["flags"], *allowances]
    pictures = import_module("lvlm_guard.evals.report.evidence")
    if not results["void"] and not (folder / pictures.EVIDENCE / pictures.INDEX).exists():
        pictures.collect_for(folder)
    page = import_module("lvlm_guard.evals.report.page").write_report(folder)
    end("eval run", results, rules, json, report=page)


def score(
    paths: Annotated[list[str], _PATHS],
    scoring: Scoring,
    task: Annotated[str, Option(help="Of files: yes-no, chair, opope, amber, mmhal.")] = "",
    questions: Annotated[tuple[Path, ...], _QUESTIONS] = (),
    annotations: Annotated[Path | None, _ANNOTATIONS] = None,
    words: Annotated[tuple[int, ...], COMMAS, _WORDS] = (),
    baseline: Annotated[str, Option(help="Whom the others are compared with. [default: the first]")] = "",
    json: Json = False,
) -> None:
    """Score answers that are there, with intervals and paired tests.

    Of a run's folder: what eval run does after asking, as when a scorer was mended. Of files: the same scores,
    whoever's model answered.

    [bold]Example:[/bold] lvlm-guard eval score greedy=a.jsonl opera=b.jsonl --task chair --annotations annotations
    """
    rules = rules_of(scoring.fail_if)
    if len(paths) == 1 and Path(paths[0]).is_dir():
        if task or questions or annotations or words or baseline:
            raise usage(f"{paths[0]} is a run's folder, which knows its tasks: --task and its options are of files.")
        found = scoring.score(Path(paths[0]))
    else:
        room = import_module("lvlm_guard.evals.foreign.score")
        more = {"repope": scoring.repope, "baseline": baseline or None}
        data = room.Data(questions, annotations, scoring.dialect, list(words), **more)
        found = room.score_files(_named(paths), task, data, scoring.allowed)
    end("eval score", found, rules, json)


def _named(paths: list[str]) -> dict[str, Path]:
    """Return the files by the names of their decoders: NAME=FILE, or the file's name up to its first dot."""
    found: dict[str, Path] = {}
    for text in paths:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name.partition(".")[0], text
        if name in found:
            raise usage(f"{text}: {name!r} is {found[name]} already. Name them apart: NAME=FILE.")
        if Path(path).is_dir():
            raise usage(f"{path} is a folder: give one run's folder alone, or files of answers.")
        found[name] = Path(path)
    return found


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
    from lvlm_guard.knobs import defaults_of, read_knob
    from lvlm_guard.methods import REGISTRY

    values: dict[str, list[str]] = {}
    for text in texts:
        knob = ""
        for piece in text.split(","):
            name, equals, value = piece.partition("=")
            knob, value = (name.strip(), value) if equals else (knob, piece)
            if not knob:
                raise usage(f"--sweep {text!r}: write NAME=VALUE,VALUE, such as alpha=0.5,1,2.")
            values.setdefault(knob, []).append(value.strip())
    single = [name for name in methods if name in REGISTRY.names()]
    known = {knob: default for method in reversed(single) for knob, default in defaults_of(method).items()}
    for knob in values:
        if knob not in known:
            raise usage(f"--sweep {knob}: none of --methods {','.join(methods)} has this knob.")
    return {knob: tuple(dict.fromkeys(read_knob(knob, text, known[knob]) for text in values[knob])) for knob in values}


def rules_of(texts: Sequence[str]) -> list[Any]:
    """Read the rules of --fail-if."""
    from lvlm_guard.errors import GuardError

    try:
        return [import_module("lvlm_guard.evals.report.fail_if").fail_if(text) for text in texts]
    except GuardError as error:
        raise usage(f"--fail-if: {error}") from None


def tell(tables: Iterable[RenderableType] = (), sentences: Iterable[str] = (), /, **places: Path) -> None:
    """Print tables, sentences, and where files are."""
    shown = out()
    for table in tables:
        shown.print(table)
    for sentence in sentences:
        shown.print(escape(sentence))
    for what, place in places.items():
        shown.print(f"{what}  {escape(str(place))}", soft_wrap=True)


def show(results: Mapping[str, Any], **places: Path) -> None:
    """Print a run's tables and what they say; a void run has none."""
    room = import_module("lvlm_guard.evals.report.terminal")
    tell(room.tables(results, out().width), room.sentences(results))
    for sentence in (*results["warnings"], *results.get("flags", ())):
        out().print(escape(f"note: {sentence}"), style="yellow")
    tell(**places)


def end(command: str, results: Mapping[str, Any], rules: Sequence[Any], json: bool, **places: Path) -> None:
    """Print results, as the one JSON object of a command or as tables, and leave with the code that they deserve."""
    if json:
        rows = [{"method": row["decoder"], **row} for row in results["rows"]]
        print_object({"command": command, "version": __version__, **results, "rows": rows})
    else:
        show(results, **places)
    leave(results, rules)


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
