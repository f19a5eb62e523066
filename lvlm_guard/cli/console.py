"""What every command prints: results, errors with their exit code, the JSON object."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from lvlm_guard import __version__
from lvlm_guard.cli.settings import with_settings
from lvlm_guard.errors import GuardError, KnobError, UnknownNameError

WIDE = 140  # columns of output that goes to a file or a pipe
FAILED, USAGE, VOID, STOPPED = 1, 2, 3, 130


def out() -> Console:
    """Return the console for results: as wide as the terminal, or `WIDE` columns where there is none.

    Made anew each time, so that a redirected stdout is honoured.
    """
    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=WIDE if free else None)


def err() -> Console:
    """Return the console for everything that is no result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    err().print(escape(text), style="dim")


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the options of its settings, whose errors are a message and an exit code.

    `LVLM_GUARD_DEBUG=1` shows the traceback too.
    """
    command = with_settings(command)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it where it is, and it advises
        try:
            command(**options)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            err().print("Stopped.", style="yellow")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:
            raise  # `| head`: typer ends quietly
        except Exception as error:  # the last place that can turn it into a message
            _debug()
            raise typer.Exit(_explain(error)) from None

    return run


def _explain(error: Exception) -> int:
    console = err()
    if isinstance(error, GuardError):
        console.print(f"[bold red]{_title(error)}:[/] {escape(str(error))}")
        return USAGE if isinstance(error, KnobError | UnknownNameError) else FAILED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        console.print(
            f"[bold red]Out of memory:[/] {escape(str(error).splitlines()[0] if str(error) else '')} Try --dtype "
            "bfloat16, a smaller picture, fewer --max-new-tokens, or --device cpu."
        )
        return FAILED
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(package := (error.name or "").split(".")[0])):
        told = f"This needs {package}, which is not installed: pip install 'lvlm-guard[{extra}]'."
        console.print(f"[bold red]Missing extra:[/] {escape(told)}")
        return FAILED
    if isinstance(error, OSError):
        console.print(f"[bold red]The system refused:[/] {escape(str(error))}. Check the path and the free space.")
        return FAILED
    console.print(
        f"[bold red]Unexpected {type(error).__name__}:[/] {escape(str(error))}\nThis is a fault of lvlm-guard or of a "
        "package below it. LVLM_GUARD_DEBUG=1 shows where; please report it with that output."
    )
    return FAILED


def _extra_of(package: str) -> str | None:
    """Return the first of our extras that brings a package, None where none does."""
    try:
        needs = (requires("lvlm-guard") or []) if package else []
    except PackageNotFoundError:  # it runs from its sources alone
        return None
    brought = re.compile(rf"{package.replace('_', '[-_.]')}\b(?![-_.]).*extra == [\"'](.+)[\"']", re.IGNORECASE)
    return next((found[1] for need in needs if (found := brought.match(need))), None)


def _title(error: GuardError) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(error).__name__.removesuffix("Error"))
    return (words.strip() or "error").capitalize()


def _debug() -> None:
    if os.environ.get("LVLM_GUARD_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def usage(message: str) -> typer.BadParameter:
    """Return the error of a call with wrong or missing options: exit code 2."""
    return typer.BadParameter(message)


def quiet_libraries() -> None:
    """Keep transformers' and the hub's progress bars and advice out of our output; their errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    from transformers.utils import logging as advice

    advice.set_verbosity_error()
    advice.disable_progress_bar()


def line() -> str:
    """Return the command line that this is."""
    return shlex.join(["lvlm-guard", *sys.argv[1:]])


def installed(package: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: Any = None) -> dict[str, Any]:
    """Return where a result was made: versions, machine, device, and how busy the machine was."""
    made = {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **{name: installed(name) for name in ("torch", "transformers", "tokenizers", "numpy", "pillow")},
    }
    if "torch" in sys.modules:
        import torch

        made["threads"] = torch.get_num_threads()
        if device is not None:
            kind = torch.device(device)
            made["device"] = str(kind)
            made["device_name"] = torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type
    return made


def print_json(command: str, rows: Sequence[dict[str, Any]], device: Any = None, **more: Any) -> None:
    """Print the one JSON object of a command: command, version, environment, rows, and what else it has."""
    head = {"command": command, "version": __version__, "environment": environment(device)}
    print_object({**head, "rows": list(rows), **more})


def print_object(whole: dict[str, Any]) -> None:
    """Print one JSON object, NaN and infinity as null."""
    sys.stdout.write(json.dumps(finite(whole), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def bullets(lines: Iterable[str]) -> None:
    """Print remarks under a result."""
    for line in lines:
        out().print(f"[dim]note[/]  {escape(line)}")
