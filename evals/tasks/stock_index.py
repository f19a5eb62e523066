"""Tasks of lmms-eval by name: found, loaded with their data, or refused with the reason before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lvlm_guard.errors import MissingExtraError, UnknownNameError, did_you_mean
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms.registered import INSTALL
from lvlm_guard.evals.lmms.requests import REFUSED
from lvlm_guard.evals.lmms.stock import stock_names

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
    _check_allowed(name)
    if name.startswith("amber_g") and name in stock_names():  # without spaCy its code can't even be imported
        _needs_spacy(name)
    manager = _manager(name, include, own)
    try:
        with quiet():
            loaded = _flat(manager.load_task_or_group([name], task_type="chat"))
    except ModuleNotFoundError as error:
        raise DataError(
            f"The task {name} needs the package {error.name}, which is not installed: pip install {error.name}."
        ) from error
    except Exception as error:
        raise DataError(_no_data(name, error)) from error
    for each, task in loaded.items():
        _check_allowed(each)
        _check_judge(each, task)
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


def _found(find: Callable[[str], Any], path: str) -> bool:
    for candidate in (path, f"{path}.zip"):
        try:
            find(candidate)
        except LookupError:
            continue
        return True
    return False


def _needs_spacy(task: str) -> None:
    way = f"pip install spacy && python -m spacy download {SPACY_MODELS[0]}"
    if find_spec("spacy") is None:
        raise DataError(f"The task {task} is scored with spaCy's word vectors, and spaCy is not installed: {way}.")
    if not any(find_spec(model) for model in SPACY_MODELS):
        raise DataError(
            f"The task {task} is scored with spaCy's word vectors, and no model that has them is installed: {way}."
        )
    needs_nltk(task)


def _check_allowed(name: str) -> None:
    if name in REFUSED:
        raise DataError(f"The task {name} is not offered: {REFUSED[name]}. Take pope_coco or mme for yes/no questions.")


def _check_judge(name: str, task: Any) -> None:
    told = task.config.metadata
    judge = told.get("gpt_eval_model_name") if isinstance(told, Mapping) else None
    if judge:
        raise DataError(
            f"The task {name} is scored by an outside judge ({judge}), whose failures lmms-eval takes for wrong "
            "answers: not offered. Use stock lmms-eval with --model lvlm_guard."
        )


def _scored_in(task: Any, folder: str) -> bool:
    """Whether a task is scored by the code of a stock task, whatever its own name is."""
    code = getattr(task.config.process_results, "__code__", None)
    return code is not None and Path(code.co_filename).parent.name == folder


def _manager(name: str, include: tuple[str, ...], own: list[str]) -> Any:
    package = find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        near = get_close_matches(name, own, n=1)
        raise MissingExtraError(
            f"No task is called {name!r} here"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" If it is one of lmms-eval, install that: {INSTALL}."
        )
    for folder in include:
        if not Path(folder).is_dir():
            raise DataError(f"--include-path {folder} is no folder: give one that holds the YAML files of tasks.")
    # lmms-eval takes half a minute to say that it has no such task
    known = _mentioned(name, [*package.submodule_search_locations, *include])
    local = _index(include, False) if include and known else None
    if local is not None and name in local.all_tasks:
        if name in stock_names():
            raise DataError(
                f"{', '.join(include)} has a task {name!r}, and so has lmms-eval, which would take its own: give yours "
                "another name."
            )
        return local
    manager = _index(include, True) if known else None
    if manager is None or name not in manager.all_tasks:
        names = [*own, *stock_names(), *(local.all_tasks if local else ())]
        raise UnknownNameError(
            f"No task is called {name!r}, neither here nor in lmms-eval. "
            + did_you_mean(name, names)
            + f"Here: {', '.join(own)}. There: `lmms-eval tasks` lists them."
            + ("" if include else " Tasks of your own need --include-path FOLDER.")
        )
    return manager


def _mentioned(name: str, folders: Sequence[str]) -> bool:
    """Whether any YAML file holds the name as a word."""
    word = re.compile(rf"(?<![\w.+-]){re.escape(name)}(?![\w+-])")
    files = (path for folder in folders for path in Path(folder).rglob("*.yaml"))
    return any(word.search(path.read_text(encoding="utf-8", errors="replace")) for path in files)


@cache
def _index(include: tuple[str, ...], stock: bool) -> Any:
    try:
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(f"lmms-eval can't be imported ({error}). Install it: {INSTALL}.") from error
    with quiet():
        return TaskManager(include_path=list(include) or None, include_defaults=stock, model_name="lvlm_guard")


def _flat(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tasks of a tree of groups."""
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        found |= _flat(value) if isinstance(value, Mapping) else {str(name): value}
    return found


def _no_data(name: str, error: Exception) -> str:
    """Say why a task could not be loaded; lmms-eval's five tries hide the cause."""
    last = getattr(error, "last_attempt", None)
    cause = last.exception() if last is not None else error
    text = str(cause).strip().split("\n")[0].rstrip(".")
    said = f"The task {name} can't be loaded: {type(cause).__name__}: {text}."
    if "offline" not in text.lower() and not isinstance(cause, ConnectionError):
        return said
    return (
        f"{said} Its data is on the Hugging Face hub, which this machine does not reach or must not (HF_HUB_OFFLINE, "
        "HF_DATASETS_OFFLINE). Load it once with network, or point the task at files of your own with `lvlm-guard eval "
        f"localize {name} FILE` and give the folder that it writes with --include-path."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lmms-eval's log off the terminal: it tells of its 1,900 tasks, and of each one that is scored."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
