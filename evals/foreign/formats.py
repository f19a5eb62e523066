"""Whose file it is, told by the fields of its first row, and what each field means there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec import jsonl

Row = dict[str, Any]


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
    truth: str = ""  # JSON of what is right, where that is no label


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
    Format("lmms-eval", ("doc_id", "filtered_resps"), "doc_id", "filtered_resps", "", "input", "target"),  # 0.7
    Format("VLMEvalKit", ("index", "prediction"), "index", "prediction", "image_path", "question", "answer"),
    Format("PAI", ("query", "ans"), "", "ans", "", "query", "label"),  # PAI's POPE
    Format("captions", ("image_id", "caption"), "image_id", "caption", "image_id"),  # OPERA, PAI, DeCo, CHAIR's script
    Format("AMBER", ("id", "response"), "id", "response"),
    # ours (with score and decoder); AGLA, VCD and LLaVA (without label)
    Format("answers", ("question_id", "text"), "question_id", "text", "image", "prompt", "label"),
    Format("captions by name", ("image", "text"), "image", "text", "image", "prompt"),
    Format("POPE", ("question", "answer"), "", "answer", "", "question", "label"),  # in the order of its questions
)


def read(path: Path) -> Iterator[Given]:
    """Yield a file's answers; raises `DataError`, which names the line, where one is none or of no known format."""
    if path.suffix == ".parquet":
        raise DataError(f"{path} is a run's table, without its questions: give the run's folder, {path.parent}, alone.")
    form: Format | None = None
    for number, row in jsonl.numbered(path):
        at = f"Line {number} of {path}"
        if form is None:
            jsonl.check_fields(row, (), at, "answer")
            form = _format(path, row)
        jsonl.check_fields(row, form.needs, at, f"answer like the first, as {form.name} writes it")
        yield _given(at, number, row, form)
    if form is None:
        raise DataError(f"{path} holds no answer: it is empty. Was the run that wrote it stopped?")


def _format(path: Path, first: Row) -> Format:
    form = next((form for form in FORMATS if all(field in first for field in form.needs)), None)
    if form is None:
        raise DataError(
            f"{path} is of no known format: its first row has {', '.join(map(repr, first)) or 'no field'}. Known are "
            + "; ".join(f"{' and '.join(map(repr, form.needs))} ({form.name})" for form in FORMATS)
            + ". Rename the fields to question_id, image, label, text (and score, decoder), or image_id and caption."
        )
    if form.label == "label" and "label" in first and str(first[form.text]).rstrip().endswith("?"):
        told = f"{path} is a file of questions, not of answers ({form.text!r} is {first[form.text]!r})"
        raise DataError(f"{told}: give it with --questions, and here the answers.")
    return form


def _given(at: str, number: int, row: Row, form: Format) -> Given:
    spreadsheet = form.name == "VLMEvalKit"
    asked, picture, objects = row.get(form.item), row.get(form.picture), None
    if form.item and asked is None:
        raise DataError(f"{at} has no {form.item!r}, by which questions are told apart: {form.item!r} is None.")
    key, kinds = str(asked) if form.item else str(number), _text(row.get("category"))
    if form.name == "lmms-eval":
        if isinstance(told := row.get("pope_accuracy"), dict):  # what was asked is in its metrics alone
            asked = told.get("question_id", asked)
        elif isinstance(told := row.get("coco_cap_chair_i"), dict):
            picture, objects = told.get("image_id"), [str(name) for name in told.get("answer", ())]
    score = None if spreadsheet else _score(at, row)  # VLMEvalKit's "score" says whether an answer is right
    text = _answer(at, form.text, row[form.text], numbers=spreadsheet)
    item = f"{kinds}/{key}" if kinds and "," not in kinds else key
    cut = score is not None and row.get("score_cut") is not None
    named = (item, _text(asked), _text(picture), _text(row.get(form.question)), row.get(form.label), kinds)
    try:
        more = {name: read_as(row[name]) for name, read_as in _PLAIN.items() if row.get(name) not in (None, "")}
    except (TypeError, ValueError) as error:
        raise DataError(f"{at} has a seed, mass, or number or list of tokens that is none: {error}.") from None
    return Given(number, *named, text=text, score=score, after_cut=cut, objects=objects, **more)


_PLAIN: dict[str, Callable[[Any], Any]]
_PLAIN = {"decoder": str, "seed": int, "mass": float, "censored": bool, "tokens": int, "ended": bool, "cut_at": list}
"""Fields that have one name everywhere, and how they are read."""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _answer(at: str, field: str, text: Any, numbers: bool) -> str:
    while isinstance(text, list) and len(text) == 1:  # lmms-eval keeps a list for each request
        text = text[0]
    if numbers and isinstance(text, int | float):  # a spreadsheet's cell
        text = str(text)
    if not isinstance(text, str):
        told = "A missing answer is no wrong one: ask again, or take the question out for every decoder."
        raise DataError(f"{at} has no answer: {field!r} is {text!r:.80}. {told}")
    # half a pair of surrogates is JSON, and no text
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _score(at: str, row: Row) -> float | None:
    """Return the score that a row has, whether before a plausibility cut or after it."""
    before, after = row.get("score"), row.get("score_cut")
    if before is not None and after is not None:
        told = "from before and after a plausibility cut: one table ranks by one of them. Take one out of every row."
        raise DataError(f"{at} has both 'score' and 'score_cut', {told}")
    value = before if after is None else after
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        told = "it must be a number, ln p(yes) - ln p(no) at the first answer token, nats"
        raise DataError(f"{at} has the score {value!r}: {told}.")
    if after is None and math.isinf(score):
        told = "only one taken after a plausibility cut is infinite: name the field 'score_cut' in every row."
        raise DataError(f"{at} has the score {score}: {told}")
    return score
