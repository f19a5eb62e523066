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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign import rows
from lvlm_guard.evals.foreign.rows import Row
from lvlm_guard.evals.spec import jsonl


class Given(NamedTuple):
    """One answer, whoever wrote it.

    Args:
        line: of the file, or number of the row.
        item: what tells its question from others; the line where only the order does.
        asked: id of the question in a file of questions; "" where there is none.
        picture, question: "" where the file does not say.
        label: as written; None where there is none.
        kinds: subsets that the question counts in, joined by commas.
        text: the answer.
        decoder: who answered; "" where the file does not say.
        seed: which of the decoder's runs.
        score: log-odds of yes, nats; None: not there.
        after_cut: whether the score was taken after a plausibility cut, so that it may be infinite.
        mass, censored, tokens, ended, cut_at: see `spec.answers.Answer`.
        objects: what is in the picture, where a log of captions says so.
    """

    line: int
    item: str
    asked: str = ""
    picture: str = ""
    question: str = ""
    label: Any = None
    kinds: str = ""
    text: str = ""
    decoder: str = ""
    seed: int = 0
    score: float | None = None
    after_cut: bool = False
    mass: float | None = None
    censored: bool = False
    tokens: int = 0
    ended: bool = True
    cut_at: list[int] | None = None
    objects: list[str] | None = None


@dataclass(frozen=True)
class Format:
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
    numbered = rows.numbered(path)
    first = next(numbered)
    form = _format(path, first[1])
    if form.label == "label" and "label" in first[1] and str(first[1][form.text]).rstrip().endswith("?"):
        raise DataError(
            f"{path} is a file of questions ({form.text!r} is {first[1][form.text]!r}), not of answers: give it with "
            "--questions, and here the file that a model's answers were written to."
        )
    for number, row in chain((first,), numbered):
        at = f"Line {number} of {path}"
        if not all(field in row for field in form.needs):
            jsonl.check_fields(row, form.needs, at, f"row like the first, as {form.name} writes it,")
        yield _given(at, number, row, form)


def _format(path: Path, row: Row) -> Format:
    form = next((form for form in FORMATS if all(field in row for field in form.needs)), None)
    if form is None:
        raise DataError(
            f"{path} is of no known format: its first row has {', '.join(map(repr, row)) or 'no field'}. Known are "
            + "; ".join(f"{' and '.join(map(repr, form.needs))} ({form.name})" for form in FORMATS)
            + ". Rename the fields to question_id, image, label, text (and score, decoder), or image_id and caption."
        )
    return form


def _given(at: str, number: int, row: Row, form: Format) -> Given:
    text = row[form.text]
    while isinstance(text, list) and len(text) == 1:  # lmms-eval keeps a list for each request
        text = text[0]
    if form.name == "VLMEvalKit" and isinstance(text, int | float):  # a spreadsheet's cell
        text = str(text)
    if not isinstance(text, str):
        raise DataError(
            f"{at} has no answer: {form.text!r} is {text!r:.80}. A missing answer can't be scored, nor taken for a "
            "wrong one: ask again, or take the question out for every decoder."
        )
    if not text.isascii():  # half a pair of surrogates is JSON, and no text
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    item, picture, objects = row.get(form.item), row.get(form.picture), None
    asked = item
    if form.name == "lmms-eval":
        if isinstance(told := row.get("pope_accuracy"), dict):  # what was asked is in its metrics alone
            asked = told.get("question_id", item)
        elif isinstance(told := row.get("coco_cap_chair_i"), dict):
            picture, objects = told.get("image_id"), [str(name) for name in told.get("answer", ())]
    # VLMEvalKit's "score" says whether an answer is right
    if form.item and item is None:
        raise DataError(f"{at} has no {form.item!r}, by which questions are told apart: {form.item!r} is None.")
    key, kinds = str(item) if form.item else str(number), _text(row.get("category"))
    score, after_cut = (None, False) if form.name == "VLMEvalKit" else _score(at, row)
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
            after_cut,
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


def _score(at: str, row: Row) -> tuple[float | None, bool]:
    before, after = row.get("score"), row.get("score_cut")
    if before is not None and after is not None:
        raise DataError(
            f"{at} has both 'score' and 'score_cut', the score before and after a plausibility cut: one table ranks by "
            "one of them. Take one of the fields out of every row."
        )
    value = before if after is None else after
    if value is None or value == "":
        return None, False
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
    return score, after is not None
