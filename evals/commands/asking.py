"""`lvlm-guard eval ask`, `run`, `verify` and `reproduce`: the commands that ask a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from lvlm_guard.cli.console import VOID, err, line, out, quiet_libraries, say, usage
from lvlm_guard.cli.options import Json, Matchers, StartOver, knob_value, matchers_of
from lvlm_guard.cli.settings import COMMAS, EMBEDDED, Only, Usual
from lvlm_guard.evals.commands.answered import Scoring
from lvlm_guard.evals.commands.shown import end, leave, rules_of, tell
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.ranks import Place

VERIFIERS = {True: ("blip-itm", "clip", "dual-prompt", "ranker"), False: ("blip-itm", "clip")}  # of the embedded model
GRID = Only(("images", "annotations", "questions", "limit", "seeds", "device", "dtype"))
DESCRIBED = Only(
    ("model", "images", "annotations", "questions", "split", "limit", "max_new_tokens", "revision", "device", "dtype")
)

_KNOB = Option(help="A method's knob, e.g. agla.alpha=1.5. Repeatable.", metavar="M.NAME=VALUE")
_SWEEP = Option(help="Values of a knob, e.g. alpha=0.5,1,2. Repeatable. On --split val only.", metavar="NAME=V,V")
_CLIP = Option(help="The untuned CLIP of the baselines: a folder or hub id; calibrated if it can be.")
_MODEL = Option(help="One of the paper's models, a folder of one, or embedded. [default: both]")
_ONLY = Option(help="Parts of the grid: pope, chair, coco, gqa, paper, official, ...")


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
        from lvlm_guard.evals.infer.ask import ask, usual_batch

        if self.quick:
            settings = settings.quick()
        knobs, sweep = _knobs(self.knob), _sweep(self.sweep, settings.methods)
        settings = replace(settings, knobs=knobs, sweep=sweep, matchers=matchers_of(self.matcher))
        settings = replace(settings, batch=self.batch or usual_batch(settings))
        return ask(
            settings,
            self.out,
            echo=say,
            command=command,
            workers=self.workers,
            concurrency=self.concurrency,
            started_over=self.start_over,
        )


def ask(settings: Settings, asking: Asking, json: Json = False) -> None:
    """Ask several decoders the same questions, and write their answers as one table.

    Greedy, sampling, controls and each method's own stand beside the methods. Answers are kept as they come, and the
    same command goes on after any end, and asks what failed again. Exit code 3: every request failed. On several GPUs
    or machines, which share --out, torchrun starts it:

    torchrun --nproc-per-node 8 -m lvlm_guard eval ask --model ID --out runs/first

    [bold]Example:[/bold] lvlm-guard eval ask --methods agla,vote --out runs/first
    """
    folder = asking.ask(settings, "eval ask")
    from lvlm_guard.evals.infer.store import ANSWERS, failures

    whole = (folder / ANSWERS).exists()
    total, failed, why = failures(folder) if whole else (None, None, "")
    if failed:
        say(
            f"{failed} of {total} answers failed, the first as {why.rstrip('.')}. The same command asks for them again."
        )
    found = {"folder": str(folder), "whole": whole, "failed": failed}
    tell("eval ask", json, found, **{"answers": folder / ANSWERS} if whole else {})
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
    scoring.check()  # before anything is generated
    folder = asking.ask(settings, "eval run")
    from lvlm_guard.evals.report.evidence import collect_for
    from lvlm_guard.evals.report.page import write_report
    from lvlm_guard.evals.report.saved import EVIDENCE, INDEX, read_run

    results = scoring.score(folder)
    results["warnings"] = [*read_run(folder).asked["warnings"], *results["warnings"]]
    results["flags"] += [
        f"--allow-{name} {share:g}: so large a share of {name} answers does not make the run void."
        for name, share in (("empty", scoring.allow_empty), ("truncated", scoring.allow_truncated))
        if share
    ]
    if not results["void"] and not (folder / EVIDENCE / INDEX).exists():
        collect_for(folder)
    end("eval run", results, rules, json, report=write_report(folder))


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
    from lvlm_guard.evals.report.terminal import tables
    from lvlm_guard.evals.studies.verify import sentences, verify_run

    embedded = settings.model == EMBEDDED
    matchers = matchers_of(matcher) or {name: (name,) for name in VERIFIERS[embedded]}
    settings = replace(
        settings,
        tasks=(task or ("world_chair" if embedded else "chair"),),
        methods=(),
        batch=batch,
        # the guard's default judge stands beside whatever is measured
        matchers={"blip-itm": ("blip-itm",)} | matchers,
    )
    report = verify_run(settings, out_, clip, echo=say, started_over=start_over, line=line())
    parts = [*sentences(report)[:1], *tables(report, out().width), *report["remarks"]]
    tell("eval verify", json, report, parts, report=out_ / "report.json")


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
    from lvlm_guard.evals.stats.validity import Allowed
    from lvlm_guard.evals.studies import reproduce as study

    base, width = replace(settings, captions=settings.limit), out().width
    if dry_run:
        planned = study.dry_run(model, only, base)
        tell("eval reproduce agla", json, planned, [study.dry_run_table(planned, width), *study.sentences(planned)])
        return
    allowed = Allowed(truncated=allow_truncated)
    found = study.reproduce(out_, model, only, base, echo=say, workers=workers, allowed=allowed)
    tell("eval reproduce agla", json, found, [*study.reproduce_tables(found, width), *found["notes"]], runs=out_)
    leave(found)


def _knobs(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        left, equals, text = pair.partition("=")
        method, dot, name = left.strip().partition(".")
        if not equals or not dot:
            raise usage(f"--knob {pair!r}: write METHOD.NAME=VALUE, such as agla.alpha=1.5.")
        given.setdefault(method, {})[name] = knob_value(method, name, text.strip())
    return given


def _sweep(texts: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read "alpha=0.5,1,2" and "alpha=0.5,1,beta=0.1,0.5"; a name without "=" is a further value."""
    from lvlm_guard.api import parts_of, resolve
    from lvlm_guard.knobs import defaults_of, read_knob
    from lvlm_guard.methods import REGISTRY

    values: dict[str, list[str]] = {}
    for text in texts:
        for part in re.split(",(?=[^,]*=)", text):
            knob, equals, listed = part.partition("=")
            if not equals or not knob.strip():
                raise usage(f"--sweep {text!r}: write NAME=VALUE,VALUE, such as alpha=0.5,1,2.")
            values.setdefault(knob.strip(), []).extend(map(str.strip, listed.split(",")))
    tuned = [resolve(name).assembling.name for name in methods if {*parts_of(name)} <= {*REGISTRY.names()}]
    known = {knob: default for method in reversed(tuned) for knob, default in defaults_of(method).items()}
    for knob in values:
        if knob not in known:
            raise usage(f"--sweep {knob}: none of --methods {','.join(methods)} has this knob.")
    return {knob: tuple(dict.fromkeys(read_knob(knob, text, known[knob]) for text in values[knob])) for knob in values}
