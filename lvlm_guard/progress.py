"""How far long work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Is told how many units have just been done, and what is being done if that is worth a word."""

    def __call__(self, count: int, text: str = "") -> object: ...


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    what: str,
    total: int,
    echo: Callable[[str], object] = _to_stderr,
    bar: bool | None = None,
    every: float | None = None,
) -> Iterator[Advance]:
    """Show how far a long run is.

    Args:
        what, total: is counted, in the plural, and how many there are.
        echo: where plain lines go.
        bar: whether to draw a bar; None: where the error stream is a terminal.
        every: seconds between plain lines; None: one each tenth of the way.
    """
    if sys.stderr.isatty() if bar is None else bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as drawn:
            task = drawn.add_task(what, total=total)
            yield lambda count, text="": drawn.update(task, advance=count, description=text or what)
        return
    done, tenths = 0, 0
    began = said = time.monotonic()

    def advance(count: int, text: str = "") -> None:
        nonlocal done, tenths, said
        done += count
        passed, now = done * 10 // max(total, 1), time.monotonic()
        if passed > tenths if every is None else now - said >= every and done < total:
            tenths, said = passed, now
            left = (now - began) * (total - done) / max(1, done)
            doing = f" ({text})" if text else ""
            echo(f"{what}: {done} of {total}{doing}, {now - began:.0f} s, about {left:.0f} s left")

    yield advance
