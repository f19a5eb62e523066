"""Requests of lmms-eval, in either of its two layouts, as items that our own runs ask too."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lvlm_guard.errors import UnsupportedCallError
from lvlm_guard.evals.lmms.generation import Generation, read
from lvlm_guard.evals.lmms.index import REFUSED
from lvlm_guard.evals.spec.items import Item

Talk = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """One document to be answered; `messages` makes its chat messages, as lmms-eval writes them.

    `repeat`: how many times it was asked before in this run (`--repeats`); each has a seed of its own.
    """

    task: str
    split: str
    doc_id: int
    repeat: int
    generation: Generation
    messages: Callable[[], Talk]

    def item(self) -> Item:
        """Return the document as an item, its pictures decoded; raises `UnsupportedCallError` or `ImageError`."""
        from lmms_eval.protocol import ChatMessages

        from lvlm_guard.families.processor import picture

        talk = ChatMessages(messages=self.messages()).to_hf_messages()
        pictures, texts = [], []
        for part in (part for message in talk for part in message["content"]):
            if part["type"] == "image":
                part["image"] = picture(part["image"])
                pictures.append(part["image"])
            elif part["type"] == "text":
                texts.append(part["text"])
            else:
                raise UnsupportedCallError(
                    f"Document {self.doc_id} of {self.task} has a {part['type']}: lvlm_guard answers about pictures."
                )
        key = str(self.doc_id)
        return Item(key, f"{self.task} {key}", "\n".join(texts), tuple(pictures), talk=lambda: talk)


def read_requests(requests: Iterable[Any], documents: Mapping[str, Mapping[str, Any]]) -> list[Request | None]:
    """Return requests of lmms-eval (`Instance`s), in their order; None for one that only fills up a process's share.

    They come in the chat layout (context, doc_to_messages, gen_kwargs, doc_id, task, split), or in the simple one
    (context, gen_kwargs, doc_to_visual, ...), which a chat model gets for tasks given as a dict or as a folder;
    `documents` is `lmms.task_dict`. Raises `UnsupportedCallError` where a task or generation argument is refused.
    """
    times: Counter[tuple[str, str, int, int]] = Counter()
    found: list[Request | None] = []
    for request in requests:
        if (request.metadata or {}).get("__padding_only__"):
            found.append(None)
            continue
        context, second, third, doc_id, task, split = request.args
        if task in REFUSED:
            raise UnsupportedCallError(f"{task} is not run on lvlm_guard: {REFUSED[task]}.")
        say, wanted = (second, third) if callable(second) else (_simple(context, third), second)

        def messages(say: Any = say, task: str = task, split: str = split, doc_id: int = doc_id) -> Talk:
            told: Talk = say(documents[task][split][doc_id])
            return told

        which = (task, split, doc_id, request.idx)
        found.append(Request(task, split, doc_id, times[which], read(wanted, task), messages))
        times[which] += 1
    return found


def _simple(context: str, visuals: Callable[[Any], Any]) -> Callable[[Any], Talk]:
    """Return what makes messages of the simple layout: the pictures, then the text."""

    def say(document: Any) -> Talk:
        pictures = [{"type": "image", "url": visual} for visual in visuals(document) or ()]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": context}]}]

    return say


def digest(request: Request, item: Item, seed: int) -> str:
    """Return a name of a document's question: its text, pictures, generation arguments and seed."""
    texts = [[m["role"], [part.get("text", "[picture]") for part in m["content"]]] for m in item.conversation()]
    told = [request.task, request.split, request.doc_id, seed, asdict(request.generation), texts]
    whole = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for image in item.pictures():
        whole.update(f"{image.size}".encode() + image.tobytes())
    return whole.hexdigest()[:32]
