"""What the guard did: token by token, and in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_guard.engine.assembly import divergence
from lvlm_guard.engine.method import Step

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = 64  # most likely assembled tokens whose log-probabilities a trace keeps at a step


@dataclass
class TokenTrace:
    """One token of an answer.

    Args:
        token: its id.
        log_prob: its log-probability (nats) under each branch and in the assembly; None where a branch
            did not run (lazy, decided) or the token is not among the `KEPT` most likely assembled ones.
        divergence: Jensen-Shannon divergence (nats) of the global and the first other branch, if it ran.
        decided: whether the global branch alone had decided the token.
        overruled: the token that the global branch ranked first, where the guard ranked another first.
        extra: what the method left of this step beside, by name (`Step.extra`).
    """

    token: int
    log_prob: dict[str, float | None]
    divergence: float | None
    decided: bool
    overruled: int | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class SecondView:
    """What a method made of one picture."""

    local: Image | None = None  # the second view, once a branch needed it
    match: Any = None  # what the matcher said (`lvlm_guard.matching.Match`), once it was asked


@dataclass
class GuardTrace:
    """What a guarded `generate()` call did.

    Args:
        method: registered name of the method.
        knobs: its knobs as plain data; the matcher by the version of the one that was used.
        execution: "batched", "lazy", "joined" (lazy at first, batched once the branch had mattered), or
            "single" (a method without a second branch).
        guarded: False where no row had a picture, so that there was nothing to guard.
        notes: what a reader should know: rows without pictures, texts that were cut, fallbacks.
        global_forwards: model calls that generate() made.
        local_forwards: model calls for other branches beyond those (0 when batched: they share them).
        local_tokens: tokens that other branches processed, prompt included.
        masks: second views that were made, one a picture; two where few rows of a batch wanted theirs first.
        matches: for each picture that was matched: index, text, score, kept share of the pixels.
        views: for each picture of which a method made something, by its index: the second view and the
            match. No plain data, so that `to_dict()` leaves them out.
        steps: for each output sequence its tokens; filled with `return_dict_in_generate=True`.
        extra: what a method or a check of the answers left beside, by name: a list has an entry for each output
            sequence, anything else is of the whole call.
    """

    method: str
    knobs: dict[str, Any]
    execution: str
    guarded: bool
    notes: list[str] = field(default_factory=list)
    global_forwards: int = 0
    local_forwards: int = 0
    local_tokens: int = 0
    masks: int = 0
    matches: list[dict[str, Any]] = field(default_factory=list)
    views: dict[int, SecondView] = field(default_factory=dict, repr=False)
    steps: list[list[TokenTrace]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def view(self, index: int) -> SecondView:
        """Return what is held of a picture, for a method to fill in."""
        return self.views.setdefault(index, SecondView())

    def leave(self, left: Sequence[Mapping[str, Any]]) -> None:
        """Keep in `extra` what was found of each output sequence, by name; None where nothing was."""
        for name in dict.fromkeys(name for one in left for name in one):
            self.extra[name] = [one.get(name) for one in left]

    def only(self, sequences: Sequence[int]) -> GuardTrace:
        """Return the trace of some of the output sequences, in this order; what is of the whole call stays."""
        extra = {name: _picked(told, sequences) for name, told in self.extra.items()}
        return replace(self, steps=_picked(self.steps, sequences), extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the views as plain data, fit for JSON.

        What `extra` holds stands beside the engine's own record, which goes before where both have a name.
        """
        told = asdict(replace(self, views={}))
        del told["views"]
        for one in (told, *(step for steps in told["steps"] for step in steps)):
            one |= {name: left for name, left in one.pop("extra").items() if name not in one}
        return told


def _picked(told: Any, places: Sequence[int]) -> Any:
    """Return these of what is told of each output sequence; what is of the whole call, or of none, as it is."""
    return [told[place] for place in places] if told and isinstance(told, list) else told


@dataclass
class _Record:
    """One step's rows, kept small: the most likely tokens and their log-probabilities."""

    tokens: Tensor  # [R, K] the assembly's first choices
    log_probs: dict[str, Tensor]  # [R, K] each, of the branches that ran
    divergence: Tensor | None  # [R]
    decided: Tensor  # [R]
    top: Tensor  # [R] the global branch's first choice
    extra: dict[int, dict[str, Any]]
    ran: Tensor | None  # [R] for which rows the other branches ran; None for all

    def told(self, row: int, token: int, others: list[str]) -> TokenTrace:
        """Return the trace of a token that was chosen after a row; `others` are the other branches' names."""
        idle = self.ran is not None and not self.ran[row]
        at = (self.tokens[row] == token).nonzero().flatten().tolist()
        said = {
            name: float(values[row, at[0]])
            for name, values in self.log_probs.items()
            if at and not (idle and name in others)
        }
        top = int(self.top[row])
        return TokenTrace(
            token=token,
            log_prob={name: said.get(name) for name in ("global", "assembled", *others)},
            divergence=None if self.divergence is None or idle else float(self.divergence[row]),
            decided=bool(self.decided[row]),
            overruled=top if top != int(self.tokens[row, 0]) else None,
            extra=self.extra.get(row, {}),
        )


class Recorder:
    """Keeps each step by what it depends on, (request, answer so far), so beams and drafts need no bookkeeping.

    An answer so far goes by its hash, made of the hash of what it was a token before: T tokens take T entries.
    """

    def __init__(self, names: list[str], keep: bool = True) -> None:
        self._names = names  # of the other branches
        self.keep = keep  # the steps themselves, or only after which beginnings one was assembled
        self._records: list[_Record] = []
        self._where: dict[tuple[int, int], tuple[int, int]] = {}  # request and beginning -> record and row
        self._last: dict[tuple[int, int], tuple[list[int], int]] = {}  # row and request -> what it began with last

    def add(
        self,
        step: Step,
        assembled: Tensor,
        branches: tuple[Tensor, ...] | None,
        decided: Tensor | None,
        ran: Tensor | None = None,
    ) -> None:
        """Keep a step of R rows; `ran` [R] tells for which of them the branches ran, where not for all."""
        for row, request in enumerate(step.request):
            prefix = step.prefix(row)
            before, known = self._last.get((row, request), ([], 0))
            if prefix[: len(before)] != before:  # another beam's
                before, known = [], 0
            for token in prefix[len(before) :]:
                known = hash((known, token))
            self._last[row, request] = prefix, known
            self._where[request, known] = len(self._records), row
        if not self.keep or decided is None:
            return
        kept = assembled.topk(min(KEPT, assembled.shape[-1]), -1).indices
        said = {"global": step.logits, "assembled": assembled}
        said |= dict(zip(self._names, (each.float() for each in branches or ()), strict=False))
        self._records.append(
            _Record(
                tokens=kept.cpu(),
                log_probs={name: each.log_softmax(-1).gather(-1, kept).cpu() for name, each in said.items()},
                divergence=divergence(step.logits, branches[0].to(step.logits.dtype)).cpu() if branches else None,
                decided=decided.cpu(),
                top=step.logits.argmax(-1).cpu(),
                extra=step.extra,
                ran=None if ran is None else ran.cpu(),
            )
        )

    def chosen(self, answer: list[int], request: int) -> list[tuple[int, int]]:
        """Return the record and row that each token was chosen by; shorter than the answer where one has none."""
        found, known = [], 0
        for token in answer:
            place = self._where.get((request, known))
            if place is None:
                break
            found.append(place)
            known = hash((known, token))
        return found

    def read(self, answers: list[list[int]], per_request: int) -> list[list[TokenTrace]]:
        """Return the trace of each answer; answers of one request stand together, `per_request` each."""
        if not self.keep:
            return []
        return [
            [
                self._records[record].told(row, token, self._names)
                for token, (record, row) in zip(answer, self.chosen(answer, index // per_request), strict=False)
            ]
            for index, answer in enumerate(answers)
        ]


def answers_of(sequences: Tensor, prompt: int, eos: set[int]) -> list[list[int]]:
    """Cut the prompt off [rows, T] and end each row after its first end-of-text token."""
    answers: list[list[int]] = torch.as_tensor(sequences)[:, prompt:].tolist()
    ends = [next((i + 1 for i, token in enumerate(answer) if token in eos), None) for answer in answers]
    return [answer[:end] for answer, end in zip(answers, ends, strict=True)]
