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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms.generation import Generation, read
from lvlm_guard.evals.lmms.index import load
from lvlm_guard.evals.metrics.stock import check_scorable
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import REGISTRY, STOCK
from lvlm_guard.images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class StockItem(Item):
    """A document of a task of lmms-eval; its pictures are decoded when they are asked about.

    Args:
        source: lmms-eval's task.
    """

    source: Any = None

    def pictures(self) -> list[Image]:
        """Return the pictures that the task shows, RGB."""
        return [load_image(one) for one in self.source.doc_to_visual(self.source.eval_docs[int(self.key)])]


@dataclass(frozen=True)
class StockTask(EvalTask):
    """A task of lmms-eval.

    Args:
        source: lmms-eval's task, which scores.
    """

    source: Any = None


def stock_tasks(name: str, settings: Settings) -> list[EvalTask]:
    """Return the tasks of lmms-eval that a name stands for; a group gives several.

    Raises:
        MissingExtraError: lmms-eval is not installed.
        UnknownNameError: neither here nor there is such a task.
        DataError: its data is missing, or it can't be run as it is.
    """
    bare = name.removeprefix(STOCK)
    tasks = load(bare, settings.include, REGISTRY.names())
    if settings.split != "test":
        raise DataError(
            f"{name} is a task of lmms-eval, which has it for the test split only: choose settings on world_pope, "
            "world_chair, pope_coco or chair with --split val."
        )
    return [_made(STOCK + each if name != bare else each, task, settings) for each, task in tasks.items()]


def _made(name: str, task: Any, settings: Settings) -> StockTask:
    if task.OUTPUT_TYPE != "generate_until":
        raise DataError(f"{name} asks for {task.OUTPUT_TYPE}: only tasks that generate one answer can be run.")
    if task.config.repeats > 1:
        raise DataError(f"{name} asks each question {task.config.repeats} times and scores one answer: not offered.")
    check_scorable(name, task)
    asked = generation(name, task.config.generation_kwargs or {})
    docs = task.eval_docs_no_media
    pictures = picture_names(task.eval_docs)
    chosen = _chosen(pictures, settings.limit)
    _check_visuals(name, task, chosen[0])
    _check_pairs(name, task, docs, chosen)
    items = [
        StockItem(
            key=str(place),
            picture=pictures[place],
            prompt=_prompt(task, docs, place),
            images=(),
            truth=_plain(task.doc_to_target(docs[place])),
            rows=(name,),
            tags=_tags(docs[place]),
            talk=_talk(task, place),
            source=task,
        )
        for place in chosen
    ]
    about = {
        "source": f"lmms-eval, {task.config.dataset_path}"
        + (f" {task.config.dataset_name}" if task.config.dataset_name else "")
        + f", split {task.config.test_split or task.config.validation_split}",
        "protocol": f"lmms-eval's task {name.removeprefix(STOCK)}, its own prompt and scoring",
        "prompt": items[0].prompt,
        "metrics": {metric: bool(up) for metric, up in task.higher_is_better().items()},
        "include": list(settings.include),
        "warnings": _warnings(name, asked, settings),
    }
    limit = settings.max_new_tokens or asked.max_new_tokens
    return StockTask(name, "stock", items, limit, until=asked.until, about=about, source=task)


def generation(name: str, wanted: Mapping[str, Any]) -> Generation:
    """Return what a task's generation arguments ask for.

    Raises:
        UnsupportedCallError: an argument is unknown or out of range.
        DataError: they ask for sampling or beams: a run compares decoders, so none of its answers would be stock's.
    """
    asked = read(wanted, name)
    if asked.do_sample or asked.num_beams > 1:
        what = "sampling" if asked.do_sample else f"{asked.num_beams} beams"
        raise DataError(
            f"{name} asks for {what}, but the decoders of a run decide how answers are chosen: its numbers would not "
            "be stock's. Use stock lmms-eval with --model lvlm_guard."
        )
    return asked


def picture_names(docs: Any) -> list[str]:
    """Return a name for each document's pictures, from their bytes, so that questions about one share it."""
    from datasets import Image, Sequence

    plain: dict[str, Any] = {}
    for column, feature in docs.features.items():
        if isinstance(feature, Image):
            plain[column] = Image(decode=False)
        elif isinstance(getattr(feature, "feature", None), Image):
            plain[column] = Sequence(Image(decode=False))
    if not plain:
        return [str(place) for place in range(len(docs))]
    raw = docs.select_columns(list(plain))
    for column, feature in plain.items():
        raw = raw.cast_column(column, feature)
    return [_digest(row.values()) for row in raw]


def _digest(values: Any) -> str:
    whole = hashlib.sha256()
    for value in values:
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                whole.update(one["bytes"] if one["bytes"] is not None else str(one["path"]).encode())
    return whole.hexdigest()[:12]


def _chosen(pictures: Sequence[str], limit: int | None) -> list[int]:
    """Return the documents of the first pictures, those of one picture together."""
    of: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        of.setdefault(picture, []).append(place)
    return [place for picture in list(of)[:limit] for place in of[picture]]


def _check_visuals(name: str, task: Any, place: int) -> None:
    from PIL.Image import Image

    shown = task.doc_to_visual(task.eval_docs[place]) or []
    strange = next((type(one).__name__ for one in shown if not isinstance(one, Image)), None)
    if strange or not shown:
        raise DataError(
            f"{name} shows {'a ' + strange if strange else 'nothing'}, no picture: there is nothing to guard."
        )


def _check_pairs(name: str, task: Any, docs: Any, chosen: Sequence[int]) -> None:
    """See that each picture of MME has two questions: its scoring fails otherwise, when all answers are paid for."""
    if "mme_perception_score" in task.aggregation():
        counts = Counter((docs[place]["category"], docs[place]["question_id"]) for place in chosen)
        odd = [picture for picture, count in counts.items() if count != 2]
        if odd:
            raise DataError(
                f"{name} scores pairs of questions, and {len(odd)} pictures do not have two; the first is {odd[0][1]}. "
                "Give both, or none."
            )


def _talk(task: Any, place: int) -> Callable[[], list[dict[str, Any]]]:
    def talk() -> list[dict[str, Any]]:
        from lmms_eval.protocol import ChatMessages

        told: list[dict[str, Any]] = ChatMessages(messages=task.doc_to_messages(task.eval_docs[place])).to_hf_messages()
        return told

    return talk


def _prompt(task: Any, docs: Any, place: int) -> str:
    if callable(task.config.doc_to_messages):
        parts = [part for turn in _talk(task, place)() for part in turn["content"]]
        return "\n".join(part["text"] for part in parts if part["type"] == "text")
    return str(task.doc_to_text(docs[place]))


def _plain(value: Any) -> Any:
    """Return a target as JSON data."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)


def _tags(doc: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("question_id", "category", "image_source")
    return {field: doc[field] for field in shown if isinstance(doc.get(field), str | int)}


def _warnings(name: str, asked: Generation, settings: Settings) -> list[str]:
    if settings.max_new_tokens in (None, asked.max_new_tokens):
        return []
    return [
        f"{name}: answers have at most {settings.max_new_tokens} tokens; stock lmms-eval allows {asked.max_new_tokens}."
    ]
