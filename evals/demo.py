"""The demo: every decoder on the embedded world, in one table, with intervals and paired tests.

    from lvlm_guard.evals import demo
    results = demo.run("demo-out")

All answers come from the public API: `guard(model, processor)`, then `generate(**inputs, guard=...)`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lvlm_guard
from lvlm_guard import guard
from lvlm_guard.embedded import MATCHER, MODEL
from lvlm_guard.evals.answers import Answers, ask_all
from lvlm_guard.evals.decoders import COMPARED, REFERENCE, demo_decoders
from lvlm_guard.evals.demo_tasks import CAPTION_TOKENS, demo_tasks, measure
from lvlm_guard.evals.progress import Meter
from lvlm_guard.evals.rows import Row, find, long_rows
from lvlm_guard.evals.world import NOUNS, world_chair, world_pope
from lvlm_guard.matching import load_matcher
from lvlm_guard.pretrained import load_model

if TYPE_CHECKING:
    from rich.table import Table

PICTURES, CAPTIONS, SEEDS, BATCH = 300, 400, 3, 64
QUICK_PICTURES, QUICK_CAPTIONS = 24, 24
THREADS = 4  # the model is so small that more threads wait for each other

LIMITS = (
    "The world is drawn and its bias is built in. Props mislead the language model because it was trained on labels "
    "that assume what usually goes with them; it was trained on partly blacked pictures too; the matcher was trained "
    "on clean labels and told to ignore props. So this world meets AGLA's premise, and makes the matcher the better "
    "judge, by design. The figures show that the code does what the methods promise where their premise holds, for "
    "one training seed. They do not show that a method helps a real model: that must be measured on one."
)
"""What this world shows and what it does not; said wherever its figures are."""


@dataclass(frozen=True)
class Results:
    """What a demo found.

    Args:
        rows: scores and differences in long form, see `lvlm_guard.evals.rows`.
        out: folder with the answers, `results.json` and the page.
        page: `demo.html`.
        seconds: time spent asking and scoring, over all sittings of a resumed run.
        settings: what decides the answers.
        environment: where it ran.
    """

    rows: list[Row]
    out: Path
    page: Path
    seconds: float
    settings: dict[str, Any]
    environment: dict[str, str]

    def find(self, method: str, task: str, metric: str) -> Row:
        """Return one row; raises `KeyError` where there is none."""
        row = find(self.rows, method, task, metric)
        if row is None:
            raise KeyError(f"no row for {method}, {task}, {metric}")
        return row

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data: what `--json` prints."""
        return {
            "command": "demo",
            "version": lvlm_guard.__version__,
            "environment": self.environment,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "rows": self.rows,
        }

    def table(self, width: int = 120) -> Table:
        """Return the table for a terminal of `width` columns."""
        from lvlm_guard.evals.demo_table import table

        return table(self.rows, width)

    def remarks(self) -> list[str]:
        """Return what a reader must know of the table, sentence by sentence."""
        from lvlm_guard.evals.demo_table import remarks

        return [*remarks(self.rows), LIMITS]


def run(
    out: str | Path = "demo-out",
    *,
    pictures: int = PICTURES,
    captions: int = CAPTIONS,
    seeds: int = SEEDS,
    batch: int = BATCH,
    quick: bool = False,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    model: str | Path = MODEL,
) -> Results:
    """Ask every decoder, score the answers, and write the page.

    Answers go to `out/answers` as they come. An interrupted run goes on where it stopped when the same
    command is given again, with the same final numbers; a finished one is done again from the start.

    Args:
        out: folder for answers, results.json and demo.html.
        pictures: scenes of POPE, 18 questions each.
        captions: scenes to caption.
        seeds: runs of sampled decoders and random maps.
        batch: questions of one `generate()` call.
        quick: a few pictures, one seed: shows that it works; the intervals are as wide as that deserves.
        echo: told what happens, a line at a time.
        bar: whether to draw a progress bar on the error stream; None: if it is a terminal.
        model: folder of a model that was trained on the embedded world.

    Raises:
        DataError: there are not as many scenes.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    if quick:
        pictures, captions, seeds = min(pictures, QUICK_PICTURES), min(captions, QUICK_CAPTIONS), 1
    folder = Path(out)
    embedded = Path(model) == MODEL
    settings = {
        "model": "embedded" if embedded else str(model),
        "pictures": pictures,
        "captions": captions,
        "seeds": seeds,
        "batch": batch,
        "caption_tokens": CAPTION_TOKENS,
        "code": _code_digest(),
        "weights": _weights_digest([Path(model), MATCHER]),
    }
    with _few_threads():
        began = time.monotonic()
        echo(f"Drawing {pictures} scenes for POPE and {captions} to caption, all held out from training.")
        pope, scenes = world_pope(pictures), world_chair(captions)
        net, processor, matcher = load(model)
        decoders = demo_decoders(matcher, NOUNS, seeds)
        spent = _earlier_seconds(folder, settings)
        tasks = demo_tasks(pope, scenes, decoders)
        answers = Answers(folder / "answers", tasks, batch, keep=spent is not None)
        if spent is None:
            spent = 0.0
            _note(folder, settings, spent, finished=False)
        else:
            echo(f"Going on with the run in {folder}.")
        total = sum(len(t.items) * sum(d.seeds for d in t.decoders) for t in answers.tasks.values())
        echo(f"Asking {len(decoders)} decoders, {total} answers in all.")
        try:
            with Meter(total, "answers", echo, bar) as meter:
                ask_all(net, processor, matcher, answers, lambda task, count: meter.advance(count, task))
        except KeyboardInterrupt:
            _note(folder, settings, spent + time.monotonic() - began, finished=False)
            echo(f"Stopped. The answers so far are in {answers.folder}; the same command goes on from there.")
            raise
        rows = long_rows(str(settings["model"]), measure(pope, scenes, answers), REFERENCE, list(COMPARED))
        seconds = spent + time.monotonic() - began
        results = Results(rows, folder, folder / "demo.html", seconds, settings, _environment())
        (folder / "results.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
        echo(f"Asked and scored in {seconds:.0f} s.")
        from lvlm_guard.evals.demo_page import write

        write(results, pope, scenes, answers, net, processor)
        _note(folder, settings, seconds, finished=True)
    return results


def load(model: str | Path = MODEL) -> tuple[Any, Any, Any]:
    """Return the guarded model, its guarded processor, and its matcher, in float32 on the CPU."""
    net, processor = guard(*load_model(str(model), device="cpu", dtype="float32"))
    return net, processor, load_matcher(None, model=net)


def _earlier_seconds(folder: Path, settings: dict[str, Any]) -> float | None:
    """Return the seconds that this very run took before it was interrupted; None where there is no such run."""
    try:
        note = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    same = isinstance(note, dict) and note.get("settings") == settings and not note.get("finished")
    return float(note.get("seconds", 0.0)) if same else None


def _note(folder: Path, settings: dict[str, Any], seconds: float, *, finished: bool) -> None:
    content = {"settings": settings, "seconds": round(seconds, 1), "finished": finished}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "run.json.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "run.json")


def _code_digest() -> str:
    """Return a digest of this package's source, so that answers of other code are not taken for this code's."""
    root = Path(lvlm_guard.__file__).parent
    digest = sha256()
    # the rooms are links in a checkout, which rglob does not follow
    for path in sorted({*root.rglob("*.py"), *(root / "evals").rglob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _weights_digest(folders: list[Path]) -> str:
    digest = sha256()
    for path in sorted(path for folder in folders for path in folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment() -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }
