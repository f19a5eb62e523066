"""Answers without labels, and the file of questions that has them: joined by id, or by order where there is no id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given
from lvlm_guard.evals.foreign.gathered import LABELS
from lvlm_guard.evals.tasks.pope.files import described
from lvlm_guard.evals.tasks.pope.questions import Question


class Questions:
    """Files of questions; raises `DataError` where one is none of questions, or is RePOPE's."""

    def __init__(self, paths: Sequence[Path]) -> None:
        files = [described(path, len(paths)) for path in paths]
        kinds = [file.row.removeprefix("pope").lstrip("_") for file in files]
        self.asked = [(kind, q) for kind, file in zip(kinds, files, strict=True) for q in file.questions]
        self.files = ", ".join(dict.fromkeys(file.path.name for file in files))
        self.by_id: dict[str, list[tuple[str, Question]]] = {}
        for kind, question in self.asked:
            self.by_id.setdefault(str(question.question_id), []).append((kind, question))
        self.several = len(files) > 1
        self.notes = [
            f"{file.path.name} has the questions of POPE's published file for {file.published}."
            if file.published
            else f"{file.path.name} is none of POPE's published files: numbers compare with none of a paper."
            for file in files
        ]

    def join(self, name: str, given: Iterable[Given]) -> Iterator[Given]:
        """Yield the answers of a file with picture, label, kind and a key that is unique among the questions.

        Raises:
            DataError: an answer is to no question, or to another one than its id says; or there are fewer answers
                without ids than questions.
        """
        met: Counter[tuple[str, ...]] = Counter()
        for answer in given:
            who: tuple[str, ...] = (answer.decoder, str(answer.seed))
            if answer.asked:  # kinds may share an id and even a question: these come in the order of the files
                who = (*who, answer.asked, answer.question)
                near = self.by_id.get(answer.asked, [])
            else:
                near = self.asked[met[who] : met[who] + 1]
            fit = [(kind, question) for kind, question in near if _same(answer, question)]
            if not fit:
                raise DataError(self._stranger(name, answer, near))
            kind, question = fit[met[who] % len(fit)]
            met[who] += 1
            item = f"{kind}/{question.question_id}" if self.several else str(question.question_id)
            yield answer._replace(
                item=item, picture=question.image, question=question.text, label=question.label, kinds=kind
            )
        short = next((count for who, count in met.items() if len(who) == 2 and count < len(self.asked)), None)
        if short:
            raise DataError(
                f"{name} has {short} answers to {len(self.asked)} questions, and no ids: which ones are missing can't "
                "be known. Ask all again, or write 'question_id' beside each answer."
            )

    def _stranger(self, name: str, answer: Given, near: Sequence[tuple[str, Question]]) -> str:
        at = f"Line {answer.line} of {name}" + (f", question_id {answer.asked}," if answer.asked else "")
        if not near:
            return (
                f"{at} answers none of the {len(self.asked)} questions of {self.files}. Is that file RePOPE's, of "
                "another kind of POPE, or of a part of the questions?"
            )
        _, question = near[0]
        theirs = ", ".join(map(repr, filter(None, (answer.picture, answer.question, answer.label))))
        return (
            f"{at} is of {theirs}; in {self.files} that question is {question.image!r}, {question.text!r}, "
            f"{question.label!r}. These are answers to another file of questions: give that one with --questions."
        )


def _same(answer: Given, question: Question) -> bool:
    """Whether what a file says of its question fits; prompts may say more, and some copies spell "imange"."""
    asked, text = (t.lower().replace("imange", "image").strip() for t in (answer.question, question.text))
    label = None if answer.label is None else LABELS.get(str(answer.label).strip().lower(), "")
    return (not asked or text in asked) and answer.picture in ("", question.image) and label in (None, question.label)
