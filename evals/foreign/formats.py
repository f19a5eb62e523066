"""Whose file it is, told by the fields of its first row, and what each field means there.

| fields | written by |
|---|---|
| `question_id`, `text` (`image`, `label`, `score`, `decoder`) | us; AGLA, VCD and LLaVA (without `label`) |
| `doc_id`, `filtered_resps` | lmms-eval 0.7, `--log_samples` |
| `index`, `prediction` | VLMEvalKit, .xlsx or .tsv; `lvlm-guard eval export` |
| `query`, `ans`, `label` | PAI's POPE |
| `question`, `answer` | POPE itself: answers in the order of its questions |
| `image_id`, `caption` | OPERA, PAI, DeCo and CHAIR's own script |
| `id`, `response` | AMBER |
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec import jsonl

Row = dict[str, Any]
WIDEST = 2**24
"""Characters of a cell of a table."""


class Given(NamedTuple):
    """One answer, whoever wrote it; what is not said here is as in `spec.answers.Answer`."""

    line: int  # of the file, or number of the row
    item: str  # what tells its question from others; the line where only the order does
    asked: str = ""  # id of the question in a file of questions; "" where there is none
    picture: str = ""  # "" where the file does not say, as the next one
    question: str = ""
    label: Any = None  # as written; None where there is none
    kinds: str = ""  # subsets that the question counts in, joined by commas
    text: str = ""
    decoder: str = ""  # who answered; "" where the file does not say
    seed: int = 0
    score: float | None = None  # log-odds of yes, nats
    after_cut: bool = False  # whether the score was taken after a plausibility cut, so that it may be infinite
    mass: float | None = None
    censored: bool = False
    tokens: int = 0
    ended: bool = True
    cut_at: list[int] | None = None
    objects: list[str] | None = None  # what is in the picture, where a log of captions says so


class Format(NamedTuple):
    """Names of a file's fields; "" for none. `needs` tell it from others, and every row must have them."""

    name: str
    needs: tuple[str, ...]
    item: str
    text: str
    picture: str = ""
    question: str = ""
    label: str = ""


FORMATS = (
    Format("lmms-eval", ("doc_id", "filtered_resps"), "doc_id", "filtered_resps", "", "input", "target"),
    Format("VLMEvalKit", ("index", "prediction"), "index", "prediction", "image_path", "question", "answer"),
    Format("PAI", ("query", "ans"), "", "ans", "", "query", "label"),
    Format("captions", ("image_id", "caption"), "image_id", "caption", "image_id"),
    Format("AMBER", ("id", "response"), "id", "response"),
    Format("answers", ("question_id", "text"), "question_id", "text", "image", "prompt", "label"),
    Format("captions by name", ("image", "text"), "image", "text", "image", "prompt"),
    Format("POPE", ("question", "answer"), "", "answer", "", "question", "label"),
)


def read(path: Path) -> Iterator[Given]:
    """Yield a file's answers.

    Raises:
        DataError: the file is of no known format, or a row lacks a field or holds what can't be an answer or a score.
    """
    rows = _rows(path)
    first, row = next(rows)
    form = next((form for form in FORMATS if all(field in row for field in form.needs)), None)
    if form is None:
        raise DataError(
            f"{path} is of no known format: its first row has {', '.join(map(repr, row)) or 'no field'}. Known are "
            + "; ".join(f"{' and '.join(map(repr, form.needs))} ({form.name})" for form in FORMATS)
            + ". Rename the fields to question_id, image, label, text (and score, decoder), or image_id and caption."
        )
    if form.label == "label" and "label" in row and str(row[form.text]).rstrip().endswith("?"):
        raise DataError(
            f"{path} is a file of questions ({form.text!r} is {row[form.text]!r}), not of answers: give it with "
            "--questions, and here the file that a model's answers were written to."
        )
    what = f"row like the first, as {form.name} writes it,"
    for number, told in chain([(first, row)], rows):
        at = f"Line {number} of {path}"
        jsonl.check_fields(told, form.needs, at, what)
        yield _given(at, number, told, form)


def _given(at: str, number: int, row: Row, form: Format) -> Given:
    spreadsheet = form.name == "VLMEvalKit"
    item, picture, objects = row.get(form.item), row.get(form.picture), None
    asked = item
    if form.name == "lmms-eval":
        if isinstance(told := row.get("pope_accuracy"), dict):  # what was asked is in its metrics alone
            asked = told.get("question_id", item)
        elif isinstance(told := row.get("coco_cap_chair_i"), dict):
            picture, objects = told.get("image_id"), [str(name) for name in told.get("answer", ())]
    if form.item and item is None:
        raise DataError(f"{at} has no {form.item!r}, by which questions are told apart: {form.item!r} is None.")
    key, kinds = str(item) if form.item else str(number), _text(row.get("category"))
    text = _answer(at, form.text, row[form.text], numbers=spreadsheet)
    score = None if spreadsheet else _score(at, row)  # VLMEvalKit's "score" says whether an answer is right
    try:
        return Given(
            number,
            f"{kinds}/{key}" if kinds and "," not in kinds else key,
            _text(asked),
            _text(picture),
            _text(row.get(form.question)),
            row.get(form.label),
            kinds,
            text,
            _text(row.get("decoder")),
            int(row.get("seed") or 0),
            score,
            score is not None and row.get("score_cut") is not None,
            None if row.get("mass") is None else float(row["mass"]),
            bool(row.get("censored", False)),
            int(row.get("tokens") or 0),
            bool(row.get("ended", True)),
            row.get("cut_at"),
            objects,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{at} has a seed, mass or number of tokens that is none: {error}.") from None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _answer(at: str, field: str, text: Any, numbers: bool) -> str:
    while isinstance(text, list) and len(text) == 1:  # lmms-eval keeps a list for each request
        text = text[0]
    if numbers and isinstance(text, int | float):  # a spreadsheet's cell
        text = str(text)
    if not isinstance(text, str):
        raise DataError(
            f"{at} has no answer: {field!r} is {text!r:.80}. A missing answer can't be scored, nor taken for a "
            "wrong one: ask again, or take the question out for every decoder."
        )
    # half a pair of surrogates is JSON, and no text
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _score(at: str, row: Row) -> float | None:
    """Return the score that a row has, whether before a plausibility cut or after it."""
    before, after = row.get("score"), row.get("score_cut")
    if before is not None and after is not None:
        raise DataError(
            f"{at} has both 'score' and 'score_cut', the score before and after a plausibility cut: one table ranks by "
            "one of them. Take one of the fields out of every row."
        )
    value = before if after is None else after
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise DataError(
            f"{at} has the score {value!r}: it must be a number, ln p(yes) - ln p(no) at the first answer token, nats."
        )
    if after is None and math.isinf(score):
        raise DataError(
            f"{at} has the score {score}: only a score taken after a plausibility cut is infinite, and such can't "
            "stand beside scores taken before it. Store that, or name the field 'score_cut' in every row."
        )
    return score


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with its line, or its number in a list or table: of JSON lines, a JSON list, .tsv, .csv, .xlsx."""
    if path.suffix == ".parquet":
        raise DataError(f"{path} is a run's table, without its questions: give the run's folder, {path.parent}, alone.")
    number, lines = 0, _TABLES.get(path.suffix.lower())
    for number, row in _headed(path, lines(path)) if lines else jsonl.numbered(path):
        jsonl.check_fields(row, (), f"Line {number} of {path}", "answer")
        yield number, row
    if not number:
        raise DataError(f"{path} holds no answer: it is empty. Was the run that wrote it stopped?")


def _headed(path: Path, lines: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[tuple[int, Row]]:
    """Yield rows by the names in the first line; an empty cell is an empty text."""
    names: list[str] = []
    for number, cells in lines:
        if not names:
            names = [str(cell) for cell in cells]
        elif any(cell not in (None, "") for cell in cells):
            if len(cells) != len(names):
                raise DataError(
                    f"Line {number} of {path} has {len(cells)} cells under {len(names)} headings: the file is torn, or "
                    "a text with a tab or line break lacks its quotes. Write the table again."
                )
            yield number, {name: "" if cell is None else cell for name, cell in zip(names, cells, strict=True)}


def _csv(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    csv.field_size_limit(WIDEST)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            yield from ((reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}. Convert it: iconv -f latin1 -t utf-8.") from None
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: {error}. Is it torn? Write the table again.") from None


def _sheet(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{path} is an Excel table, which needs the package openpyxl: pip install openpyxl, or save it as .tsv."
        ) from None
    try:
        book = load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
        yield from enumerate(book.worksheets[0].iter_rows(values_only=True), 1)
    except Exception as error:  # openpyxl raises zipfile's, XML's and its own
        raise DataError(f"{path} can't be read as an Excel table: {error}. Save it again, or as .tsv.") from None


_TABLES = {".tsv": _csv, ".csv": _csv, ".xlsx": _sheet}
