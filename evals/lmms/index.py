"""The tasks of lmms-eval: found without starting it (its index takes 20 seconds), loaded, or refused with the reason.

Whatever would fail once all answers are paid for is found here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lvlm_guard.errors import MissingExtraError, UnknownNameError, did_you_mean
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms import NAME
from lvlm_guard.evals.metrics import tokens

INSTALL = "pip install 'lvlm-guard[lmms]'"
REFUSED = {
    "hallusion_bench_image": "an outside model judges its answers; without it every item is 'unclear', and within one "
    "output folder lmms-eval scores a guarded run on the plain run's judgements"
}
"""Tasks whose scores would mislead, and why."""

_NLTK = "The task {} (this package's `chair` does not)"
SPACY_MODELS = ("en_core_web_md", "en_core_web_lg")  # those with word vectors
_TASK = re.compile(r"^task\s*:\s*[\"']?([\w.+-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)


@cache
def stock_files() -> dict[str, Path]:
    """Return the file of each task of lmms-eval; raises `MissingExtraError` where it is not installed."""
    texts = reversed(_stock_texts().items())  # of two files with one task the first is taken
    return {match[1]: path for path, text in texts for match in _TASK.finditer(text)}


@cache
def _stock_texts() -> dict[Path, str]:
    package = find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(f"lmms-eval is not installed: {INSTALL}.")
    return _texts(Path(package.submodule_search_locations[0]) / "tasks")


def _texts(folder: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.yaml"))}


def stock_task(name: str) -> tuple[Path, str]:
    """Return the file of a task of lmms-eval, and the split that it asks. Raises `UnknownNameError`, or `DataError`
    where its data can't be others."""
    files = stock_files()
    _check_allowed(name)
    if name not in files:
        told = f"{did_you_mean(name, files)}Name a task, no group; `lmms-eval tasks` lists them."
        raise UnknownNameError(f"lmms-eval has no task {name!r}. {told}")
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(files[name]), mode="simple")  # nothing of the task is imported
    split = config.get("test_split") or config.get("validation_split")
    if not isinstance(split, str):
        raise DataError(f"{name} names no split to test in {files[name]}: it can't be pointed at other data.")
    return files[name], split


def load(name: str, include: tuple[str, ...], own: list[str]) -> dict[str, Any]:
    """Return the tasks of lmms-eval that a name (of a task, a tag or a group) stands for, with their data.

    `include` are folders with further tasks, `own` the names of this package's, for a suggestion. Raises
    `MissingExtraError` (lmms-eval is not installed), `UnknownNameError` (there is no such task), `DataError` (the task
    is refused, or its data or packages are missing, or it can't be scored here).
    """
    _check_allowed(name)
    manager = _manager(name, include, own)
    if name.startswith("amber_g") and name in stock_files():  # without spaCy its code can't even be imported
        _needs_spacy(name)
    try:
        with quiet():
            loaded = _flat(manager.load_task_or_group([name], task_type="chat"))
    except ModuleNotFoundError as error:
        told = f"the package {error.name}, which is not installed: pip install {error.name}"
        raise DataError(f"The task {name} needs {told}.") from error
    except Exception as error:
        raise DataError(_no_data(name, error)) from error
    for each, task in loaded.items():
        _check_allowed(each)
        _check_scoring(each, task)
    return loaded


def _check_allowed(name: str) -> None:
    if name in REFUSED:
        raise DataError(f"The task {name} is not offered: {REFUSED[name]}. Take pope_coco or mme for yes/no questions.")


def _check_scoring(name: str, task: Any) -> None:
    told = task.config.metadata
    judge = told.get("gpt_eval_model_name") if isinstance(told, Mapping) else None
    if judge:
        told = f"an outside judge ({judge}), whose failures lmms-eval takes for wrong answers"
        raise DataError(f"The task {name} is scored by {told}: run it in stock lmms-eval with --model lvlm_guard.")
    code = getattr(task.config.process_results, "__code__", None)
    scorer = Path(code.co_filename).parent.name if code else ""  # whatever the task is called
    if scorer == "coco_cap_chair":
        tokens.check(_NLTK.format(name))
    elif scorer == "amber_g":
        _needs_spacy(name)


def _needs_spacy(task: str) -> None:
    lacking = "" if any(map(find_spec, SPACY_MODELS)) else "no model that has them is installed"
    lacking = lacking if find_spec("spacy") else "spaCy is not installed"
    if lacking:
        how = f"pip install spacy && python -m spacy download {SPACY_MODELS[0]}"
        raise DataError(f"The task {task} is scored with spaCy's word vectors, and {lacking}: {how}.")
    tokens.check(_NLTK.format(task))


def _manager(name: str, include: tuple[str, ...], own: list[str]) -> Any:
    """Return lmms-eval's index that has the task: of the folders alone where they have it, else the whole."""
    try:
        texts = list(_stock_texts().values())
    except MissingExtraError as error:
        near = did_you_mean(name, own)
        raise MissingExtraError(f"No task is called {name!r} here. {near}If it is lmms-eval's: {error}") from None
    for folder in include:
        if not Path(folder).is_dir():
            raise DataError(f"--include-path {folder} is no folder: give one that holds the YAML files of tasks.")
        texts += _texts(Path(folder)).values()
    local = _index(include, False) if include else None
    if local is not None and name in local.all_tasks:
        if name in stock_files():
            raise DataError(f"{', '.join(include)} and lmms-eval have a task {name!r}: give yours another name.")
        return local
    # lmms-eval takes half a minute to say that it has no such task
    word = re.compile(rf"(?<![\w.+-]){re.escape(name)}(?![\w+-])")
    manager = _index(include, True) if any(map(word.search, texts)) else None
    if manager is None or name not in manager.all_tasks:
        near = did_you_mean(name, [*own, *stock_files(), *(local.all_tasks if local else ())])
        raise UnknownNameError(
            f"No task is called {name!r}, neither here nor in lmms-eval. {near}Here: {', '.join(own)}. There: "
            f"`lmms-eval tasks` lists them.{'' if include else ' Tasks of your own need --include-path FOLDER.'}"
        )
    return manager


@cache
def _index(include: tuple[str, ...], stock: bool) -> Any:
    try:
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(f"lmms-eval can't be imported ({error}). Install it: {INSTALL}.") from error
    with quiet():
        return TaskManager(include_path=list(include) or None, include_defaults=stock, model_name=NAME)


def _flat(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tasks of a tree of groups; raises `DataError` where two groups hold one task."""
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        for each, task in (_flat(value) if isinstance(value, Mapping) else {str(name): value}).items():
            if each in found:
                raise DataError(f"the task {each} is in two of its groups: name the groups one by one")
            found[each] = task
    return found


def _no_data(name: str, error: Exception) -> str:
    """Say why a task could not be loaded; lmms-eval's five tries hide the cause."""
    last = getattr(error, "last_attempt", None)
    cause = last.exception() if last is not None else error
    text = str(cause).strip().split("\n")[0].rstrip(".")
    said = f"The task {name} can't be loaded: {type(cause).__name__}: {text}."
    if "offline" not in text.lower() and not isinstance(cause, ConnectionError):
        return said
    how = f"Load it once with network, or give --include-path what `lvlm-guard eval localize {name} FILE` writes."
    return f"{said} Its data is on the Hugging Face hub, which this machine does not reach or must not. {how}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lmms-eval's log off the terminal: it tells of its 1,900 tasks, and of each one that is scored."""
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
