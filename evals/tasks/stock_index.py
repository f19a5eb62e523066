"""Tasks of lmms-eval by name: found, loaded with their data, or refused with the reason before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from lvlm_guard.errors import MissingExtraError, UnknownNameError
from lvlm_guard.evals.errors import DataError

INSTALL = "pip install 'lvlm-guard[eval]'"

JUDGED = {
    "hallusion_bench_image": "an outside GPT judge decides, without which lmms-eval counts every answer as unclear and "
    "prints 0, and it takes up the judgements of an earlier run in the same folder, another model's too"
}
"""Task -> why its stock numbers can't be trusted."""

NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}
SPACY_MODELS = ("en_core_web_md", "en_core_web_lg")  # those with word vectors


def load(name: str, include: tuple[str, ...], own: list[str]) -> dict[str, Any]:
    """Return the tasks of lmms-eval that a name stands for, with their data: name -> task.

    Args:
        name: of a task, a tag or a group.
        include: folders with further tasks.
        own: names of this package's tasks, for a suggestion.

    Raises:
        MissingExtraError: lmms-eval is not installed.
        UnknownNameError: there is no such task.
        DataError: the task is refused, or its data or packages are missing.
    """
    manager = _manager(name, include, own)
    if name in JUDGED:
        raise DataError(_judged(name))
    if name.startswith("amber_g"):
        _needs_spacy(name)
    try:
        with _quiet():
            loaded = _flat(manager.load_task_or_group([name], task_type="chat"))
    except ModuleNotFoundError as error:
        raise DataError(
            f"The task {name} needs the package {error.name}, which is not installed: pip install {error.name}."
        ) from error
    except Exception as error:
        raise DataError(_no_data(name, error)) from error
    for each, task in loaded.items():
        if each in JUDGED:
            raise DataError(_judged(each))
        judge = (task.config.metadata or {}) if isinstance(task.config.metadata, Mapping) else {}
        if judge.get("gpt_eval_model_name"):
            raise DataError(
                f"The task {each} is scored by an outside judge ({judge['gpt_eval_model_name']}): not offered, since "
                "a judge that fails is scored like an answer. Use stock lmms-eval with --model lvlm_guard."
            )
        if _scored_in(task, "coco_cap_chair"):
            needs_nltk(each)
        if _scored_in(task, "amber_g"):
            _needs_spacy(each)
    return loaded


def needs_nltk(task: str) -> None:
    """Raise `DataError` unless NLTK's data is there: lmms-eval would ask for it when all answers are paid for."""
    import nltk

    missing = [name for name, path in NLTK_DATA.items() if not _found(nltk.data.find, path)]
    if missing:
        raise DataError(
            f"The task {task} is scored with NLTK's data, and {', '.join(missing)} is missing: python -m "
            f"nltk.downloader {' '.join(missing)}. The task `chair` of this package needs none."
        )


def _needs_spacy(task: str) -> None:
    try:
        import spacy
    except ModuleNotFoundError:
        raise DataError(
            f"The task {task} is scored with spaCy's word vectors: pip install spacy && python -m spacy download "
            f"{SPACY_MODELS[0]}."
        ) from None
    if not any(spacy.util.is_package(model) for model in SPACY_MODELS):
        raise DataError(
            f"The task {task} is scored with spaCy's word vectors, and no model that has them is installed: python -m "
            f"spacy download {SPACY_MODELS[0]}."
        )
    needs_nltk(task)


def _found(find: Callable[[str], Any], path: str) -> bool:
    for candidate in (path, f"{path}.zip"):
        try:
            find(candidate)
        except LookupError:
            continue
        return True
    return False


def _manager(name: str, include: tuple[str, ...], own: list[str]) -> Any:
    try:
        import lmms_eval.tasks as stock
    except ModuleNotFoundError as error:
        near = get_close_matches(name, own, n=1)
        raise MissingExtraError(
            f"No task is called {name!r} here"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" If it is one of lmms-eval, install that: {INSTALL} ({error.name} is missing)."
        ) from None
    for folder in include:
        if not Path(folder).is_dir():
            raise DataError(f"--include-path {folder} is no folder: give one that holds the YAML files of tasks.")
    local = _index(include, False) if include else None
    if local is not None and name in local.all_tasks:
        if _is_stock(Path(stock.__file__).parent, name):
            raise DataError(
                f"{', '.join(include)} has a task {name!r}, and so has lmms-eval, which would take its own: give yours "
                "another name."
            )
        return local
    manager = _index(include, True)
    if name not in manager.all_tasks:
        near = get_close_matches(name, [*own, *manager.all_tasks], n=1, cutoff=0.5)
        raise UnknownNameError(
            f"No task is called {name!r}, neither here nor in lmms-eval. "
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"Here: {', '.join(own)}. lmms-eval has {len(manager.all_tasks)}: `lmms-eval tasks list`."
            + ("" if include else " Tasks of your own need --include-path FOLDER.")
        )
    return manager


@cache
def _index(include: tuple[str, ...], stock: bool) -> Any:
    from lmms_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=list(include) or None, include_defaults=stock, model_name="lvlm_guard")


def _is_stock(folder: Path, name: str) -> bool:
    line = re.compile(rf"""^\s*(task|group)\s*:\s*["']?{re.escape(name)}["']?\s*$""", re.MULTILINE)
    return any(line.search(path.read_text(encoding="utf-8", errors="ignore")) for path in folder.rglob("*.yaml"))


def _flat(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tasks of a tree of groups."""
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        found |= _flat(value) if isinstance(value, Mapping) else {str(name): value}
    return found


def _scored_in(task: Any, folder: str) -> bool:
    """Whether a task is scored by the code of a stock task, whatever its own name is."""
    code = getattr(task.config.process_results, "__code__", None)
    return code is not None and Path(code.co_filename).parent.name == folder


def _judged(name: str) -> str:
    return f"The task {name} is not offered: {JUDGED[name]}. For yes/no questions take pope_coco or mme."


def _no_data(name: str, error: Exception) -> str:
    """Say why a task could not be loaded; lmms-eval's five tries hide the cause."""
    last = getattr(error, "last_attempt", None)
    cause = last.exception() if last is not None else error
    text = str(cause).strip().split("\n")[0]
    offline = "offline" in text.lower() or isinstance(cause, ConnectionError)
    return f"The task {name} can't be loaded: {type(cause).__name__}: {text}." + (
        " Its data is on the Hugging Face hub, which this machine does not reach or must not (HF_HUB_OFFLINE, "
        "HF_DATASETS_OFFLINE): load it once with network, or write a YAML of another name that includes the stock one "
        "and names local files, and give its folder with --include-path."
        if offline
        else ""
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lmms-eval's log of its 1,900 tasks off the terminal."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
