"""Where decoders of a run disagree: each answer judged, what became of an item, which of them a report shows, and how.

Plain data; needs neither torch nor transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal, get_args

from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.report.layout import JUDGED, Task
from lvlm_guard.evals.report.saved import Item, Run, Said
from lvlm_guard.evals.spec.items import YES_NO

Place = tuple[int, str, str]  # the how-manieth question about its picture an item is, its task, its key

Standing = Literal["broken", "fixed", "unreadable", "changed"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)
"""In the order in which a reader should see them: what a method broke comes first."""

CLEARLY = 0.5  # of several runs, at least half must have changed for an item to count as broken or fixed
LIMIT = 60  # pictures of a report
_read = lru_cache(maxsize=65536)(pope.read)


@dataclass(frozen=True)
class Judged:
    """One answer and what is to be said about it."""

    text: str
    mark: str = ""  # "right", "wrong" or "unreadable" for yes/no questions, else ""
    ended: bool = True  # False where it was cut at the token limit
    caption: chair.Caption | None = None  # what it names, where it is a caption

    @property
    def merit(self) -> float | None:
        """More is better; None where nothing says which is better."""
        if self.caption is not None:
            return -float(len(self.caption.hallucinated))
        return float(self.mark == "right") if self.mark else None


@dataclass(frozen=True)
class Shown:
    """An item on which decoders disagree, and what became of it."""

    task: str
    item: Item
    said: Mapping[str, Sequence[Judged]]  # decoder -> its judged answers, one a seed
    standings: Mapping[str, Standing]  # watched decoder -> what became of the item

    @property
    def key(self) -> str:
        """The item's name within its task."""
        return str(self.item["item"])

    @property
    def rank(self) -> int:
        """Where it stands among others: what a method broke comes first."""
        return min(STANDINGS.index(standing) for standing in self.standings.values())


@dataclass
class Disagreement:
    """What a task's items became under each watched decoder."""

    names: Sequence[str]  # the watched decoders
    counts: Counter[tuple[str, Standing]] = field(default_factory=Counter)  # (decoder, standing) -> items
    shown: list[Shown] = field(default_factory=list)  # those chosen to be shown, in the order of the questions
    items: int = 0


def judge(task: Task, item: Item, row: Mapping[str, Any]) -> Judged:
    """Return an answer, judged as the task's scorer reads it."""
    text, ended = row["text"], row.get("ended", True)
    if task["kind"] == "chair":
        named = [{"image_id": 0, "caption": text}]
        (caption,) = chair.compare(named, {0: item["truth"]}, vocabulary=task.get("vocabulary"))
        return Judged(text, ended=ended, caption=caption)
    # lmms-eval's own tasks may want yes or no too; what they want otherwise only they can judge
    truth = str(item["truth"]).strip().lower()
    if truth not in ("yes", "no") or task["kind"] not in (*YES_NO, "stock"):
        return Judged(text, ended=ended)
    said = _read(text)
    return Judged(text, "unreadable" if said is None else "right" if said == truth else "wrong", ended)


def watched(decoders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the decoders whose disagreement with the reference is shown: methods and adapters, else whatever is."""
    others = [d for d in decoders if d["role"] != "reference" and not d.get("derive")]
    methods = [d for d in others if d["role"] in JUDGED]
    greedy = [d for d in methods if not d.get("sampled")]
    return [d["name"] for d in greedy or methods or others]


def standings(said: Mapping[str, Sequence[Judged]], reference: str, names: Iterable[str]) -> dict[str, Standing]:
    """Return what became of an item under each decoder, those alone for which it is worth a look. "broken": the
    reference was better; "fixed": the decoder is; "unreadable": neither, and one of the two can't be read; "changed": a
    caption that names other objects of the picture, or an answer that only its task can judge."""
    plain = said.get(reference)
    found = {name: _standing(plain, said[name]) for name in names if plain and said.get(name)}
    return {name: standing for name, standing in found.items() if standing is not None}


def _standing(plain: Sequence[Judged], ours: Sequence[Judged]) -> Standing | None:
    before, after = ([one.merit for one in answers if one.merit is not None] for answers in (plain, ours))
    if before and after and abs(gain := fmean(after) - fmean(before)) >= CLEARLY:
        return "fixed" if gain > 0 else "broken"
    if any(one.mark == "unreadable" for one in (*plain, *ours)):
        return "unreadable"
    a, b = plain[0], ours[0]
    if a.caption is not None and b.caption is not None:
        return "changed" if a.caption.recalled != b.caption.recalled else None
    return "changed" if not a.mark and a.text != b.text else None


def disagreements(run: Run, limit: int = LIMIT) -> dict[str, Disagreement]:
    """Return, for each task, where a watched decoder differs from the reference, and which items to show.

    Chosen by rule: every task, method and outcome gets its turn, so that none fills the page; among items of one
    kind, other pictures come before further questions about one. Captions that only name more or fewer of the
    picture's objects fill what is left, up to `limit` items over all tasks.
    """
    reference, names = run.results.reference, watched(run.asked["decoders"])
    found: dict[str, Disagreement] = {}
    heaps: dict[Standing, dict[tuple[str, str], list[Place]]] = {standing: {} for standing in STANDINGS}
    for task in run.asked["tasks"]:
        own, seen = Disagreement(names), Counter[tuple[str, Standing, str]]()
        found[task["name"]] = own
        for item, answers in run.by_item(task["name"]):
            kept = {name: answers[name] for name in (reference, *names) if name in answers}
            if any(row["failed"] for rows in kept.values() for row in rows):
                continue
            became = standings(_judged(task, item, kept), reference, names)
            own.items += bool(became)
            own.counts.update(became.items())
            for name, standing in became.items():
                seen[name, standing, item["picture"]] += 1
                place = seen[name, standing, item["picture"]], task["name"], item["item"]
                heaps[standing].setdefault((task["name"], name), []).append(place)
    first = [heap for standing in STANDINGS[:-1] for heap in heaps[standing].values()]
    chosen = _in_turn(list(heaps["changed"].values()), limit, _in_turn(first, limit, {}))
    for task in run.asked["tasks"]:
        keys = [key for name, key in chosen if name == task["name"]]
        for item, answers in run.by_item(task["name"], ("text", "ended"), keys):
            said = _judged(task, item, answers)
            found[task["name"]].shown.append(Shown(task["name"], item, said, standings(said, reference, names)))
    return found


def _judged(task: Task, item: Item, answers: Said) -> dict[str, list[Judged]]:
    return {name: [judge(task, item, row) for row in rows] for name, rows in answers.items()}


def _in_turn(
    heaps: Sequence[Sequence[Place]], limit: int, have: Mapping[tuple[str, str], None]
) -> dict[tuple[str, str], None]:
    """Take from each heap in turn: the first question about each picture before the second ones."""
    taken = dict(have)
    queues = [iter(sorted(heap, key=lambda place: place[0])) for heap in heaps]
    while queues and len(taken) < limit:
        for queue in list(queues):
            one = next((place[1:] for place in queue if place[1:] not in taken), None)
            if one is None:
                queues.remove(queue)
            elif len(taken) < limit:
                taken[one] = None
    return taken


SIGNS = {"unreadable": "?", "wrong": "✗", "right": "✓"}  # of several answers the first of these is shown


def here(found: Disagreement, name: str, standing: Standing) -> int:
    """Return how many items of an outcome are shown."""
    return sum(one.standings.get(name) == standing for one in found.shown)


def alike(said: Sequence[Judged]) -> list[tuple[str, Judged]]:
    """Return answers that differ, each with the seeds that gave it ("" where all did)."""
    same: dict[tuple[str, bool], list[int]] = {}
    for seed, one in enumerate(said):
        same.setdefault((one.text, one.ended), []).append(seed)
    return [("seed " + ", ".join(map(str, s)) + ": " if len(same) > 1 else "", said[s[0]]) for s in same.values()]


def sign(said: Sequence[Judged]) -> tuple[str, str]:
    """Return a decoder's answers as a sign ("✓", "✗", "?", or how many absent objects) and what it means."""
    if said and said[0].caption is not None:
        absent = max(-(one.merit or 0.0) for one in said)
        return (f"✗ {absent:g}", "wrong") if absent else ("✓", "right")
    worst = next((mark for mark in SIGNS if mark in [one.mark for one in said]), "")
    return SIGNS.get(worst, ""), worst


def pieces(caption: chair.Caption) -> Iterator[tuple[str, str]]:
    """Yield a caption piece by piece, as the model wrote it, each with the absent object that it names, or ""."""
    text, done = caption.caption, 0
    for node, start, end in caption.spans:
        if node not in caption.truth and start >= done:
            yield text[done:start], ""
            yield text[start:end], node
            done = end
    yield text[done:], ""
