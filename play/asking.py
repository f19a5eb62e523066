"""What happens when someone asks: answer after answer, each as it grows, then who else was asked and what it cost."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.errors import GuardError, KnobError
from lvlm_guard.play import drawing
from lvlm_guard.play.backend import Asked, Backend, Offered
from lvlm_guard.play.pictures import Example, code_of, picture_of
from lvlm_guard.report import Html, cost_table
from lvlm_guard.report.answer import Said

MOST_METHODS = 3
MOST_TOKENS = 256
MOST_TEXT = 2000
"""Characters of a question."""


@dataclass
class Shown:
    """What the page shows at one moment; None leaves a part as it is.

    Args:
        cards: of each chosen method, in order.
        view: the picture and the map over it.
        said: one sentence, which screen readers say aloud.
        cost: of all answers, once they are there.
        code: the Python script.
        running: whether there is something to stop.
    """

    cards: list[Html] = field(default_factory=list)
    view: Html | None = None
    said: str | None = None
    cost: Html | None = None
    code: str | None = None
    running: bool | None = None


def chosen(methods: Sequence[str], offered: Mapping[str, Offered]) -> list[str]:
    """Return the chosen methods in the page's order.

    Raises:
        KnobError: none, or more than `MOST_METHODS`.
    """
    known = [name for name in offered if name in methods]
    if not 1 <= len(known) <= MOST_METHODS:
        raise KnobError(f"{len(known)} methods are chosen: take one to {MOST_METHODS}, so that they fit side by side.")
    return known


def changed(offered: Offered, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that were changed, read as the type of their defaults; raises `KnobError`."""
    from lvlm_guard.knobs import read_knob

    told = {}
    for knob, value in given.items():
        default = offered.knobs[knob]
        text = "" if value is None else str(value).strip()
        if type(default) is int and isinstance(value, float) and value.is_integer():
            text = str(int(value))
        if not text or text == str(default):
            continue
        read = read_knob(knob, text, default)
        if read != default:
            told[knob] = read
    return told


def asking(
    backend: Backend,
    sent: Any,
    prompt: Any,
    methods: Sequence[str],
    knobs: Mapping[str, Mapping[str, Any]],
    most_tokens: float,
    begun: Sequence[Example] = (),
) -> Iterator[Shown]:
    """Return what the page shows from the question to the last answer; what can't be done is said, never raised.

    Args:
        backend: who answers.
        sent: a picture as a browser sends it.
        prompt: what is asked.
        methods: names of the backend's methods.
        knobs: method -> knob -> value, as the page's fields hold them.
        most_tokens: of an answer.
        begun: the page's examples.
    """
    try:
        names = chosen(methods, backend.methods)
        text = str(prompt or "").strip()
        if not text:
            raise KnobError("The question is empty: ask something about the picture.")
        if len(text) > MOST_TEXT:
            raise KnobError(f"The question has {len(text):,} characters; the limit is {MOST_TEXT:,}.")
        picture = picture_of(sent)
        most = max(1, min(MOST_TOKENS, int(most_tokens or 64)))
        asked = {
            name: Asked(picture, text, name, changed(backend.methods[name], knobs.get(name, {})), most)
            for name in names
        }
        begins = drawing.viewer(picture)
    except GuardError as error:
        yield Shown(view=drawing.refused(str(error)), said=str(error))
        return
    cards = [drawing.waiting(name, backend.methods[name]) for name in names]
    yield Shown([*cards], begins, f"Asking {names[0]} …", Html(""), "", running=True)
    told: list[Said] = []
    for index, name in enumerate(names):
        try:
            for said, whole in _watched(backend.answers(asked[name])):
                if whole:
                    told.append(said)
                    cards[index] = _finished(backend, asked[name], said)
                else:
                    cards[index] = drawing.card(said, backend.methods[name], backend.decoded, whole=False)
                yield Shown([*cards], said=_sentence(said) if whole else None)
        except Exception as error:  # the last place that can turn it into words for someone before a browser
            cards[index] = drawing.failed(name, backend.methods[name], words(error))
            yield Shown([*cards], said=f"{name} gave no answer. {words(error)}")
    view = question_map(backend, asked[names[0]])
    yield Shown(
        [*cards],
        view,
        " ".join([_done(told), *backend.remarks(text)]),
        cost_table(told) if told else None,
        backend.script(code_of(sent, begun), [asked[said.method] for said in told]) if told else None,
        running=False,
    )


def question_map(backend: Backend, asked: Asked) -> Html | None:
    """Return the picture under the map of its question; None where no matcher is at hand or it can't be made."""
    if backend.judge is None:
        return None
    try:
        looked = backend.judge.looked(asked.picture, backend.matched_text(asked))
    except GuardError:
        return None  # a question that can't be matched; the guards that need it have said so
    finally:
        backend.judge.forget()  # nothing of a picture outlives its answers
    return drawing.viewer(asked.picture, looked, "What matters to the question.")


def object_map(backend: Backend, sent: Any, name: str) -> Html:
    """Return the picture under the map of an object; what can't be done is said."""
    try:
        picture = picture_of(sent)
        if backend.judge is None or not backend.judge.knows(name):
            raise KnobError("That object is not on the list of what is checked.")
        looked = backend.judge.looked_for(picture, name)
        backend.judge.forget()
    except GuardError as error:
        return drawing.refused(str(error))
    return drawing.viewer(picture, looked, f"Where it looked for “{name}”.", back=True)


def words(error: Exception) -> str:
    """Return what went wrong, for someone before a browser; a fault of ours goes to the terminal too."""
    if isinstance(error, GuardError):
        return str(error)
    traceback.print_exception(error)
    return f"Unexpected {type(error).__name__}: {error}. This is a fault of lvlm-guard; the terminal shows where."


def _watched(answers: Iterator[Said]) -> Iterator[tuple[Said, bool]]:
    """Return each look at an answer and whether it is the last one; closes the answer when nobody looks any more."""
    try:
        last = next(answers)
        for said in answers:
            yield last, False
            last = said
        yield last, True
    finally:
        close = getattr(answers, "close", None)
        if close is not None:
            close()


def _finished(backend: Backend, asked: Asked, said: Said) -> Html:
    verdicts, of_question = None, False
    if backend.judge is not None:
        try:
            verdicts = backend.judge.verdicts(asked.picture, said.text)
            if not verdicts:  # "no" names nothing, but it is about something
                verdicts, of_question = backend.judge.verdicts(asked.picture, asked.prompt), True
        except GuardError:
            verdicts = None  # a matcher that gives maps only
    return drawing.card(
        said,
        backend.methods[said.method],
        backend.decoded,
        whole=True,
        verdicts=verdicts,
        of_question=of_question,
    )


def _done(told: Sequence[Said]) -> str:
    counts = [f"{said.method} {over}" for said in told if (over := drawing.overruled(said))]
    return f"Done: {', '.join(counts)}." if counts else "Done."


def _sentence(said: Said) -> str:
    over = drawing.overruled(said)
    return f"{said.method}: {said.text or 'nothing'}" + (f" ({over})" if over else "")
