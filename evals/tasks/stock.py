"""Any image task of lmms-eval, unchanged: its data, prompts and scoring, so that the numbers are stock lmms-eval's.

    lvlm-guard eval run --model M --tasks mme,pope_adv
    lvlm-guard eval run --model M --tasks my_task --include-path FOLDER

A name that this package has too is reached as `lmms:pope`. What the model reads is what stock `lmms-eval --model
lvlm_guard` gives it; `stock_metrics` scores the answers by the task's own functions. `--limit` counts pictures here,
and takes all questions about each, while lmms-eval's counts documents: with it, mme keeps its pairs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms.index import load
from lvlm_guard.evals.lmms.requests import Generation, read_generation
from lvlm_guard.evals.metrics.stock import check_scorable
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import REGISTRY, STOCK
from lvlm_guard.images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class StockItem(Item):
    """A document of lmms-eval's task `source`; its pictures are decoded when they are asked about."""

    source: Any = None

    def pictures(self) -> list[Image]:
        return [load_image(one) for one in self.source.doc_to_visual(self.source.eval_docs[int(self.key)])]


def stock_tasks(name: str, settings: Settings) -> list[EvalTask]:
    """Return the tasks of lmms-eval that a name stands for, several of a group; raises as `lmms.index.load`."""
    bare = name.removeprefix(STOCK)
    tasks = load(bare, settings.include, REGISTRY.names())
    if settings.split != "test":
        told = "choose settings on world_pope, world_chair, pope_coco or chair with --split val"
        raise DataError(f"{name} is a task of lmms-eval, which has it for the test split only: {told}.")
    return [_made(STOCK + each if name != bare else each, task, settings) for each, task in tasks.items()]


def _made(name: str, task: Any, settings: Settings) -> EvalTask:
    if task.OUTPUT_TYPE != "generate_until":
        raise DataError(f"{name} asks for {task.OUTPUT_TYPE}: only tasks that generate one answer can be run.")
    if task.config.repeats > 1:
        raise DataError(f"{name} asks each question {task.config.repeats} times and scores one answer: not offered.")
    check_scorable(name, task)
    asked = generation(name, task.config.generation_kwargs or {})
    docs = task.eval_docs_no_media
    of: dict[str, list[int]] = {}  # questions about one picture come together
    for place, picture in enumerate(picture_names(task.eval_docs)):
        of.setdefault(picture, []).append(place)
    chosen = {place: picture for picture in list(of)[: settings.limit] for place in of[picture]}
    _check_shown(name, task, docs, list(chosen))
    items, told = [], ("question_id", "category", "image_source")
    for place, picture in chosen.items():
        doc = docs[place]
        tags = {field: doc[field] for field in told if isinstance(doc.get(field), str | int)}
        prompt, truth, talk = _prompt(task, docs, place), _plain(task.doc_to_target(doc)), partial(_talk, task, place)
        items.append(StockItem(str(place), picture, prompt, (), "", truth, (name,), tags, talk, source=task))
    config, limit = task.config, settings.max_new_tokens or asked.max_new_tokens
    longer = f"{name}: answers have at most {limit} tokens; stock lmms-eval allows {asked.max_new_tokens}."
    about = {
        "source": f"lmms-eval, {' '.join(filter(None, (config.dataset_path, config.dataset_name)))}, split "
        f"{config.test_split or config.validation_split}",
        "protocol": f"lmms-eval's task {name.removeprefix(STOCK)}, its own prompt and scoring",
        "prompt": items[0].prompt,
        "metrics": {metric: bool(up) for metric, up in task.higher_is_better().items()},
        "include": list(settings.include),
        "warnings": [longer] if limit != asked.max_new_tokens else [],
    }
    return EvalTask(name, "stock", items, limit, until=asked.until, about=about)


def generation(name: str, wanted: Mapping[str, Any]) -> Generation:
    """Return what a task's generation arguments ask for; raises as `read_generation`. Sampling and beams are a
    `DataError`: a run compares decoders, so none of its answers would be stock's."""
    asked = read_generation(wanted, name)
    if asked.do_sample or asked.num_beams > 1:
        what = "sampling" if asked.do_sample else f"{asked.num_beams} beams"
        told = "its numbers would not be stock's. Use stock lmms-eval with --model lvlm_guard"
        raise DataError(f"{name} asks for {what}, but a run's decoders decide how answers are chosen: {told}.")
    return asked


def picture_names(docs: Any) -> list[str]:
    """Return a name for each document's pictures, from their bytes, so that questions about one share it."""
    from datasets import Image

    kinds = {column: getattr(feature, "feature", feature) for column, feature in docs.features.items()}
    shown = [column for column, kind in kinds.items() if isinstance(kind, Image)]
    if not shown:
        return [str(place) for place in range(len(docs))]
    raw = docs.select_columns(shown).with_format("arrow")  # as it is stored: no picture is decoded
    return [_digest(row.values()) for batch in raw.iter(64) for row in batch.to_pylist()]


def _digest(values: Any) -> str:
    whole = hashlib.sha256()
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                whole.update(one["bytes"] if one["bytes"] is not None else str(one["path"]).encode())
    return whole.hexdigest()[:12]


def _check_shown(name: str, task: Any, docs: Any, chosen: Sequence[int]) -> None:
    """See that pictures are shown, and of MME two questions a picture: else its scoring fails when all is paid for."""
    from PIL.Image import Image

    shown = task.doc_to_visual(task.eval_docs[chosen[0]]) or []
    strange = next((type(one).__name__ for one in shown if not isinstance(one, Image)), None)
    if strange or not shown:
        what = f"a {strange}" if strange else "nothing"
        raise DataError(f"{name} shows {what}, no picture: there is nothing to guard.")
    if "mme_perception_score" in task.aggregation():
        counts = Counter((docs[place]["category"], docs[place]["question_id"]) for place in chosen)
        odd = [picture for picture, count in counts.items() if count != 2]
        if odd:
            told = f"{len(odd)} pictures do not have two; the first is {odd[0][1]}. Give both, or none"
            raise DataError(f"{name} scores pairs of questions, and {told}.")


def _talk(task: Any, place: int) -> list[dict[str, Any]]:
    from lmms_eval.protocol import ChatMessages

    told: list[dict[str, Any]] = ChatMessages(messages=task.doc_to_messages(task.eval_docs[place])).to_hf_messages()
    return told


def _prompt(task: Any, docs: Any, place: int) -> str:
    if callable(task.config.doc_to_messages):
        parts = [part for turn in _talk(task, place) for part in turn["content"]]
        return "\n".join(part["text"] for part in parts if part["type"] == "text")
    return str(task.doc_to_text(docs[place]))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
