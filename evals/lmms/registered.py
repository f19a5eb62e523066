"""Whether lmms-eval knows the model, and if not, why: it hides the reason in one line of its log."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from lvlm_guard.errors import GuardError, MissingExtraError
from lvlm_guard.evals.lmms import NAME

GROUP = "lmms_eval.models"
INSTALL = "pip install 'lvlm-guard[eval]'"


def check_registered() -> None:
    """Return if lmms-eval can run, and `--model lvlm_guard` will be found.

    lmms-eval loads the entry points of all packages in turn; where one fails, it logs a warning and drops all that it
    has not loaded yet, and later says that the model is "not found".

    Raises:
        MissingExtraError: lmms-eval is not installed, or can't be imported, or a package it needs is too new.
        GuardError: an entry point can't be loaded, ours or another package's; the message has its error.
    """
    try:
        models = import_module("lmms_eval.models")
    except ImportError as error:
        raise MissingExtraError(f"lmms-eval can't be imported ({error}). Install it: {INSTALL}.") from error
    if find_spec("filelock._api") is None:
        raise MissingExtraError(
            f"lmms-eval does not work with filelock 4, which is installed: {INSTALL}, or pip install 'filelock<4'."
        )
    if NAME in models.list_available_models():
        return
    points = list(entry_points(group=GROUP))
    if NAME not in {point.name for point in points}:
        raise GuardError(
            f"lmms-eval does not know the model {NAME!r}, because this package is not installed in its environment (it "
            f"runs from a folder, or the installation is older than the plug-in): {INSTALL}, or `pip install -e .` in "
            "a checkout."
        )
    for point in points:
        _load(point)
    raise GuardError(
        f"lmms-eval does not know the model {NAME!r}, although each entry point can be loaded now: start Python again, "
        "and read the warnings that lmms-eval logs when it is imported."
    )


def _load(point: EntryPoint) -> None:
    """Load one entry point as lmms-eval does; raises `GuardError` with what is wrong with it."""
    package = point.dist.name if point.dist is not None else "an unknown package"
    try:
        payload = point.load()
        if callable(payload):
            payload()
    except Exception as error:  # whatever another package's import may raise
        mend = f"Install this package again: {INSTALL}." if point.name == NAME else f"Repair or uninstall {package}."
        raise GuardError(
            f"lmms-eval does not know the model {NAME!r}: the entry point {point.name!r} of {package} ({point.value}) "
            f"fails, after which it loads no other. {type(error).__name__}: {error}. {mend}"
        ) from error
