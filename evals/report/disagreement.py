"""Where decoders of a run disagree: each answer judged, and what became of an item against the reference.

Plain data from `run.json` and `samples.jsonl`; needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from lvlm_guard.evals.metrics import chair, mme, pope

Sample = Mapping[str, Any]
Standing = Literal["broken", "fixed", "unreadable", "changed"]

STANDINGS: tuple[Standing, ...] = ("broken", "fixed", "unreadable", "changed")
"""In the order in which a reader should see them: what a method broke comes first."""

CLEARLY = 0.5  # of several runs, at least half must have changed for an item to count as broken or fixed


@dataclass(frozen=True)
class Judged:
    """One answer and what is to be said about it.

    Args:
        text: the whole answer.
        mark: "right", "wrong" or "unreadable" for yes/no questions, else "".
        merit: a number to compare answers by, more is better; None where nothing says which is better.
        ended: False where it was cut at the token limit.
        caption: what it names, where it is a caption.
    """

    text: str
    mark: str = ""
    merit: float | None = None
    ended: bool = True
    caption: chair.Caption | None = None


def judge(task: Mapping[str, Any], sample: Sample, decoder: str) -> list[Judged]:
    """Return a decoder's answers to an item, one a seed, judged as the task's scorer reads them."""
    texts = sample["answers"].get(decoder, ())
    ended = sample.get("ended", {}).get(decoder) or [True] * len(texts)
    return [_judged(task, sample, text, whole) for text, whole in zip(texts, ended, strict=True)]


def _judged(task: Mapping[str, Any], sample: Sample, text: str, ended: bool) -> Judged:
    if task["kind"] == "chair":
        row = {"image_id": 0, "caption": text}
        (caption,) = chair.compare([row], {0: sample["truth"]}, vocabulary=task.get("vocabulary"))
        return Judged(text, merit=-float(len(caption.hallucinated)), ended=ended, caption=caption)
    # lmms-eval's own tasks may want yes or no too; what they want otherwise only they can judge
    truth = str(sample.get("truth")).strip().lower()
    if truth not in ("yes", "no"):
        return Judged(text, ended=ended)
    said = mme.read(text) if task["kind"] == "mme" else pope.read(text)
    mark = "unreadable" if said is None else "right" if said == truth else "wrong"
    return Judged(text, mark, float(mark == "right"), ended)


def watched(run: Mapping[str, Any]) -> list[str]:
    """Return the decoders whose disagreement with the reference is shown: the methods, not their controls."""
    others = [d for d in run["decoders"] if d["name"] != run["reference"]]
    methods = [d for d in others if d.get("method") and not d.get("control_of") and d["method"] != "apc"]
    greedy = [d for d in methods if not d.get("sampled")]
    return [d["name"] for d in greedy or methods or others]


def standings(task: Mapping[str, Any], sample: Sample, run: Mapping[str, Any]) -> dict[str, Standing]:
    """Return what became of an item under each watched decoder, those alone for which it is worth a look.

    "broken": the reference was better; "fixed": the decoder is; "unreadable": neither, and one of the two can't
    be read; "changed": a caption that names other objects of the picture, or an answer that only its task can judge.
    """
    if any(any(reasons) for reasons in (sample.get("failed") or {}).values()):
        return {}
    plain = judge(task, sample, run["reference"])
    found: dict[str, Standing] = {}
    for name in watched(run):
        ours = judge(task, sample, name)
        standing = _standing(plain, ours) if plain and ours else None
        if standing is not None:
            found[name] = standing
    return found


def _standing(plain: Sequence[Judged], ours: Sequence[Judged]) -> Standing | None:
    merits = [[one.merit for one in answers if one.merit is not None] for answers in (plain, ours)]
    if all(merits):
        gain = fmean(merits[1]) - fmean(merits[0])
        if abs(gain) >= CLEARLY:
            return "fixed" if gain > 0 else "broken"
    if any(one.mark == "unreadable" for one in (*plain, *ours)):
        return "unreadable"
    if plain[0].caption is not None and ours[0].caption is not None:
        return "changed" if plain[0].caption.recalled != ours[0].caption.recalled else None
    return "changed" if not plain[0].mark and plain[0].text != ours[0].text else None


def disagreements(
    samples: Sequence[Sample], run: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], int, dict[str, Standing]]]:
    """Return the items where a watched decoder differs from the reference: task, place in `samples`, standings."""
    tasks = {task["name"]: task for task in run["tasks"]}
    for place, sample in enumerate(samples):
        found = standings(tasks[sample["task"]], sample, run)
        if found:
            yield tasks[sample["task"]], place, found


def absent_objects(task: Mapping[str, Any], sample: Sample, run: Mapping[str, Any]) -> list[str]:
    """Return the objects that the reference's or a watched decoder's caption names though they are not there."""
    if task["kind"] != "chair":
        return []
    named: dict[str, None] = {}
    for decoder in (run["reference"], *watched(run)):
        for one in judge(task, sample, decoder):
            if one.caption is not None:
                named |= {node: None for _, node, _ in one.caption.hallucinated}
    return list(named)
