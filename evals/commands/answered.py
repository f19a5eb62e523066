"""`lvlm-guard eval score`, `judge`, `compare`, `check`, `report`, `export` and `localize`: they ask no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer import Argument, Option

from lvlm_guard.cli.console import FAILED, VOID, bullets, out, quiet_libraries, say, usage
from lvlm_guard.cli.options import Json
from lvlm_guard.cli.settings import COMMAS
from lvlm_guard.evals.commands.shown import FailIf, end, leave, rules_of, tell

if TYPE_CHECKING:
    from lvlm_guard.evals.stats.validity import Allowed

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
_EVIDENCE = Option("--evidence", help="Collect pictures and relevance maps first; loads the run's model.")
_PROMPT = Option(help="The judge's prompt, with {image_content}, {question}, {gt_answer}, {model_answer}.", exists=True)

Folder = Annotated[Path, Argument(help="Folder of a run.", metavar="DIR", show_default=False)]
Share = Annotated[float | None, Option(min=0, max=1, help="As in eval run.")]


@dataclass(frozen=True)
class Scoring:
    """How answers are scored, and what is no good end."""

    allow_empty: Annotated[float, Option(min=0, max=1, help="Share of empty answers that is no void run.")] = 0.0
    allow_truncated: Annotated[float, _TRUNCATED] = 0.0
    dialect: Annotated[tuple[str, ...], _DIALECT] = ()
    repope: Annotated[str, _REPOPE] = ""
    fail_if: FailIf = ()

    @property
    def allowed(self) -> Allowed:
        from lvlm_guard.evals.stats.validity import Allowed

        return Allowed(self.allow_empty, self.allow_truncated)

    def check(self) -> None:
        """Raise `DataError` or `UnknownNameError` where nothing could be scored so."""
        from lvlm_guard.evals.metrics.objects import coco_words
        from lvlm_guard.evals.tasks.repope import repope_labels

        for name in self.dialect:
            coco_words(name)
        if self.repope:
            repope_labels(self.repope)

    def score(self, folder: Path) -> dict[str, Any]:
        """Score a run's folder."""
        from lvlm_guard.evals.stats.score import score

        return score(folder, allowed=self.allowed, repope=self.repope or None, dialects=self.dialect)


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
        from lvlm_guard.evals.foreign.score import Data, score_files

        data = Data(questions, annotations, scoring.dialect, words, scoring.repope, baseline or None)
        found = score_files(_named(paths), task, data, scoring.allowed)
    end("eval score", found, rules, json)


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
    from lvlm_guard.evals.tasks.mmhal import write_requests

    tell("eval judge", json, requests=write_requests(folder, prompt.read_text(encoding="utf-8")))


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
    from lvlm_guard.evals.report import compare as room

    rules = rules_of(fail_if)
    found = room.compare(a, b, decoder_a=decoder_a, decoder_b=decoder_b)
    tell("eval compare", json, found.to_dict(), [*room.tables(found, out().width), *room.remarks(found)])
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
    from lvlm_guard.evals.report import check as room

    found = room.check(folder, allow_empty=allow_empty, allow_truncated=allow_truncated)
    tell("eval check", json, found.to_dict(), room.sentences(found))
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
    from lvlm_guard.evals.report.page import write_report

    if evidence:
        quiet_libraries()
        from lvlm_guard.evals.report.evidence import collect_for

        collect_for(folder)
    tell("eval report", json, report=write_report(folder))


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
    from lvlm_guard.evals.report.saved import export_answers, read_run

    tell("eval export", json, answers=export_answers(read_run(folder), decoder, to, seed))


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
    from lvlm_guard.evals.lmms import localize as room

    made = room.localize(task, data, out_, images=images, name=name)
    if json:
        found = {"task": made.name, "folder": str(made.folder), "documents": made.documents, "notes": made.notes}
        tell("eval localize", True, found)
        return
    bullets(made.notes)
    say(f"{made.documents} documents in {made.task}")
    out().print(f"lmms-eval --include_path {escape(str(made.folder))} --tasks {escape(made.name)}", soft_wrap=True)


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
