"""What is asked and what is answered: items, tasks, answers. Plain data; needs neither torch nor lmms-eval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = (
    Literal["pope", "repope", "dash_b", "mme", "amber", "chair", "amber_captions", "opope", "mmhal", "mmhal_verdicts"]
    | Literal["mentions", "stock"]
)
Split = Literal["test", "val"]

YES_NO: tuple[Kind, ...] = ("pope", "repope", "dash_b", "mme", "amber")
"""Kinds of tasks that are answered yes or no, so that a matcher can answer them without a language model."""

CAPTIONS: tuple[Kind, ...] = ("chair", "amber_captions")
"""Kinds of tasks whose answers are scored as if they had been cut short too."""


@dataclass(frozen=True)
class Item:
    """One thing that is asked, of one picture or several."""

    key: str  # within its task: seeds, resuming and pairing go by it; for a task of lmms-eval, the doc id
    picture: str  # its name, the unit of the statistics: questions about one picture share it
    prompt: str  # the user's turn as the model reads it, a request for the answer's format included
    images: tuple[Image | Path, ...]  # before the prompt; files are opened when they are asked about
    question: str = ""  # the bare question, which the matcher alone is asked; "" where it is the prompt
    truth: Any = None  # JSON data to score against: "yes" or "no" (pope, mme), names of objects (chair)
    # result rows it counts in, such as ("pope_random", "pope_popular"): what several kinds share is asked once
    rows: tuple[str, ...] = ()
    tags: Mapping[str, Any] = field(default_factory=dict)  # what a report may show or filter by; JSON data
    talk: Callable[[], list[dict[str, Any]]] | None = None  # makes the chat, where it is not pictures, then prompt

    def pictures(self) -> list[Image]:
        """Return the pictures, RGB; raises `ImageError` where a file is missing or no picture."""
        from lvlm_guard.images import load_image

        return [load_image(image) for image in self.images]

    def describe(self) -> dict[str, Any]:
        """Return the item as it stands in `items.jsonl`, beside its task."""
        told = {"item": self.key, "picture": self.picture, "prompt": self.prompt}
        told |= {"question": self.question or self.prompt}
        return told | {"truth": self.truth, "rows": list(self.rows), "tags": dict(self.tags)}

    def conversation(self) -> list[dict[str, Any]]:
        """Return the item as chat messages, as `apply_chat_template` takes them."""
        if self.talk is not None:
            return self.talk()
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in self.pictures()]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.prompt}]}]


@dataclass(frozen=True)
class EvalTask:
    """Items that are asked alike and scored together."""

    name: str  # as in `--tasks`
    kind: Kind  # how it is scored: see `lvlm_guard.evals.metrics.metric`
    items: Sequence[Item]  # questions about one picture one after another
    max_new_tokens: int  # of an answer
    until: tuple[str, ...] = ()  # texts that end an answer
    split: Split = "test"  # to report; "val" to choose settings
    vocabulary: tuple[str, ...] | None = None  # nouns that captions are searched for (chair); None: COCO's 80 objects
    about: Mapping[str, Any] = field(default_factory=dict)  # source, protocol, prompt, ..., for the report; JSON data
    # of the validation split, on none of the test pictures: plain decoders and controls answer them too, to fit what
    # has to be fitted and to choose the best control; never reported as results
    calibration: Sequence[Item] = ()

    def block(self, number: int, batch: int) -> Sequence[Item]:
        """Return the items of block `number` of `batch` items."""
        return self.items[number * batch : (number + 1) * batch]

    def blocks(self, batch: int) -> range:
        """Return the numbers of its blocks."""
        return range(-(-len(self.items) // batch))

    def digest(self) -> str:
        """Return a digest of what is asked and what is right, but to calibrate; runs that differ can't be paired."""
        digest = hashlib.sha256(json.dumps([self.kind, self.max_new_tokens, list(self.until)]).encode())
        for i in self.items:
            told = [i.key, i.picture, i.prompt, i.question or i.prompt, i.truth, list(i.rows)]
            digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]

    def parts(self) -> list[EvalTask]:
        """Return the task and, where there are any, its calibration items as a task of the split "val"."""
        beside = replace(self, items=self.calibration, calibration=(), split="val")
        return [self, beside] if self.calibration else [self]

    def describe(self) -> dict[str, Any]:
        """Return the task as it stands in `asked.json`."""
        told: dict[str, Any] = {"name": self.name, "kind": self.kind, "split": self.split, "n": len(self.items)}
        told |= {"calibration": len(self.calibration), "pictures": len({item.picture for item in self.items})}
        told |= {"rows": list(dict.fromkeys(name for item in self.items for name in item.rows))}
        told |= {"digest": self.digest(), "max_new_tokens": self.max_new_tokens, "until": list(self.until)}
        told |= {"vocabulary": None if self.vocabulary is None else list(self.vocabulary)}
        return told | {"about": dict(self.about)}


@dataclass(frozen=True)
class Said:
    """One answer and what it cost; of a batch, its share. A cost that was not measured is NaN."""

    text: str
    tokens: int = 0
    ended: bool = True  # by itself; False: it was cut at the token limit
    seconds: float = 0.0  # of the request, picture processing and matching included
    forwards: float = 0.0  # model calls of generate()
    local_forwards: float = 0.0  # model calls for second branches
    local_tokens: float = 0.0  # that second branches read, prompt included
    masks: float = 0.0  # second views that were made
    peak_mib: float | None = None  # peak memory of the call, MiB (GPU memory on CUDA, else the process's)
    failed: str | None = None  # why there is no answer; None: there is one
    # of a yes/no question: log-odds of yes at the first answer token, nats, by the decoder's own logits before any cut
    score: float | None = None
    mass: float | None = None  # share of the probability there that is on yes or no
    censored: bool = False  # whether a server told the likeliest tokens alone, yes or no not among them
    cut_at: tuple[int, ...] | None = None  # characters of a caption after its first `spec.answers.LIMITS` tokens
    proof: str | None = None  # what a server said of its guard, JSON
