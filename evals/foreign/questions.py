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
    """Files of questions.

    Raises:
        DataError: a file is none of questions, or is RePOPE's.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        files = [described(path, len(paths)) for path in paths]
        self.asked: list[tuple[str, str, Question]] = []
        for file in files:
            kind = file.row.removeprefix("pope").lstrip("_")
            self.asked += [(kind, file.path.name, question) for question in file.questions()]
        self.places: dict[str, list[int]] = {}
        for place, (_, _, question) in enumerate(self.asked):
            self.places.setdefault(str(question.question_id), []).append(place)
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
            who = (answer.decoder, str(answer.seed))
            at = f"Line {answer.line} of {name}"
            if answer.asked:
                fit = [p for p in self.places.get(answer.asked, ()) if _same(answer, self.asked[p][2])]
                if not fit:
                    raise DataError(self._stranger(at, answer))
                # of questions that several kinds share, in the order of the files
                turn = met[(*who, answer.asked, answer.question)] % len(fit)
                met[(*who, answer.asked, answer.question)] += 1
                place = fit[turn]
            else:
                place = met[who]
                met[who] += 1
                if place >= len(self.asked) or not _same(answer, self.asked[place][2]):
                    raise DataError(self._stranger(at, answer, place))
            yield self._joined(place, answer)
        short = next((who for who, count in met.items() if len(who) == 2 and count < len(self.asked)), None)
        if short:
            raise DataError(
                f"{name} has {met[short]} answers to {len(self.asked)} questions, and no ids: which ones are missing "
                "can't be known. Ask all again, or write 'question_id' beside each answer."
            )

    def _joined(self, place: int, answer: Given) -> Given:
        kind, _, question = self.asked[place]
        key = f"{kind}/{question.question_id}" if self.several else str(question.question_id)
        return answer._replace(
            item=key, picture=question.image, question=question.text, label=question.label, kinds=kind
        )

    def _stranger(self, at: str, answer: Given, place: int | None = None) -> str:
        if place is None:
            at, places = f"{at}, question_id {answer.asked},", self.places.get(answer.asked, [])
        else:
            places = [place] if place < len(self.asked) else []
        files = ", ".join(dict.fromkeys(file for _, file, _ in self.asked))
        if not places:
            return (
                f"{at} answers none of the {len(self.asked)} questions of {files}. Is that file RePOPE's, of another "
                "kind of POPE, or of a part of the questions?"
            )
        _, _, question = self.asked[places[0]]
        theirs = ", ".join(map(repr, filter(None, (answer.picture, answer.question, answer.label))))
        return (
            f"{at} is of {theirs}; in {files} that question is {question.image!r}, {question.text!r}, "
            f"{question.label!r}. These are answers to another file of questions: give that one with --questions."
        )


def _same(answer: Given, question: Question) -> bool:
    """Whether what a file says of its question fits; prompts may say more, and some copies spell "imange"."""
    asked, text = (t.lower().replace("imange", "image").strip() for t in (answer.question, question.text))
    label = None if answer.label is None else LABELS.get(str(answer.label).strip().lower(), "")
    return (not asked or text in asked) and answer.picture in ("", question.image) and label in (None, question.label)
