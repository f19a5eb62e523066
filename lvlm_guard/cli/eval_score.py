"""`lvlm-guard eval score`: a run's folder, or anyone's file of answers, with no model in sight."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard.cli.console import out, usage
from lvlm_guard.cli.eval_run import leave, print_results, rules_of, show
from lvlm_guard.cli.options import Json


def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="A run's folder; or files of answers: JSON lines (ours, lmms-eval's, OPERA's, PAI's, AGLA's), .tsv or "
            ".xlsx (VLMEvalKit's). Each is a decoder, called as the file or as you say.",
            metavar="DIR|[NAME=]FILE...",
        ),
    ],
    task: Annotated[str, typer.Option(help="Of files: yes-no, chair, opope, amber, mmhal.")] = "",
    questions: Annotated[
        list[Path] | None, typer.Option(help="POPE's questions, where answers have no labels. Repeatable.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO's annotations, or a CHAIR ground truth; AMBER's data folder.")
    ] = None,
    dialect: Annotated[
        list[str] | None, typer.Option(help="How CHAIR reads: ours, pattern, wordnet. Repeatable.")
    ] = None,
    words: Annotated[str, typer.Option(help="Captions also cut after so many words.", metavar="N,N")] = "",
    repope: Annotated[
        str, typer.Option(help="RePOPE's folder, or fetch: POPE's answers also by its labels.", metavar="DIR|fetch")
    ] = "",
    baseline: Annotated[str, typer.Option(help="Whom the others are compared with. [default: the first]")] = "",
    allow_empty: Annotated[float, typer.Option(min=0, max=1, help="As in eval run.")] = 0.0,
    allow_truncated: Annotated[float, typer.Option(min=0, max=1, help="As in eval run.")] = 0.0,
    fail_if: Annotated[list[str] | None, typer.Option(help="As in eval run. Repeatable.")] = None,
    json: Json = False,
) -> None:
    """Score answers that are there, with intervals and paired tests.

    Of a run's folder: what eval run does after asking, as when a scorer was mended. Of files: the same scores,
    whoever's model answered.

    [bold]Example:[/bold] lvlm-guard eval score greedy=a.jsonl opera=b.jsonl --task chair --annotations annotations
    """
    rules = rules_of(fail_if or ())
    scoring = import_module("lvlm_guard.evals.stats.score")
    allowed = scoring.Allowed(allow_empty, allow_truncated)
    if len(paths) == 1 and Path(paths[0]).is_dir():
        if task or questions or annotations or words or baseline:
            raise usage(f"{paths[0]} is a run's folder, which knows its tasks: --task and its options are of files.")
        found = scoring.score(Path(paths[0]), allowed=allowed, repope=repope or None, dialects=dialect or ())
    else:
        room = import_module("lvlm_guard.evals.foreign.score")
        data = room.Data(
            questions or (), annotations, dialect or (), _lengths(words), repope=repope, baseline=baseline or None
        )
        found = room.score_files(_named(paths), task, data, allowed)
    if json:
        print_results("eval score", found)
    else:
        show(found, out())
    leave(found, rules)


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


def _lengths(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [0]
    if any(words < 1 for words in found):
        raise usage(f"--words {text!r}: give numbers of words, comma-separated, such as 16,32,64.")
    return found
