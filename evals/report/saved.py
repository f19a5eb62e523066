"""A finished run on disk: `run.json` and `samples.jsonl`, written whole or not at all, and read back.

saved = read_run("runs/first")
export_answers(saved, "agla", "agla.tsv")  # for VLMEvalKit
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.errors import DataError, disk_trouble

RUN, SAMPLES, BEGUN = "run.json", "samples.jsonl", "begun.json"

_RUN_FIELDS = {"status": str, "settings": dict, "decoders": list, "tasks": list, "rows": list}
_SAMPLE_FIELDS = {"task": str, "kind": str, "key": str, "picture": str, "answers": dict}


@dataclass(frozen=True)
class Saved:
    """A run as it is on disk.

    Args:
        folder: where it is.
        run: what `run.json` holds; its "status" is "complete", "void", or "stopped" for a run that has not
            finished.
        samples: what was asked and answered, one item each, in order.
    """

    folder: Path
    run: dict[str, Any]
    samples: list[dict[str, Any]]


def write_run(folder: str | Path, run: Mapping[str, Any]) -> Path:
    """Write `run.json`: strict JSON (a number that is not finite becomes null), whole or not at all.

    Raises:
        RunError: the system refuses, as when the disk is full; answers are kept.
    """
    return write_whole(Path(folder), RUN, json.dumps(plain(run), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_samples(folder: str | Path, samples: Iterable[Mapping[str, Any]]) -> Path:
    """Write `samples.jsonl`, one item a line; otherwise as `write_run`."""
    lines = [json.dumps(plain(sample), ensure_ascii=False, allow_nan=False) + "\n" for sample in samples]
    return write_whole(Path(folder), SAMPLES, "".join(lines))


def read_run(folder: str | Path) -> Saved:
    """Read a run.

    A run that was begun and has not finished is returned with the status "stopped" and without samples.

    Raises:
        DataError: the folder holds no run, or a file of it can't be read or used; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the --out folder of a `lvlm-guard eval run`.")
    if not (folder / RUN).exists():
        return Saved(folder, _begun(folder), [])
    run = _read_json(folder / RUN)
    _check_fields(run, _RUN_FIELDS, str(folder / RUN), "was it written by `lvlm-guard eval run`?")
    if run["status"] == "stopped" and not (folder / SAMPLES).exists():
        return Saved(folder, run, [])
    samples = _read_samples(folder / SAMPLES)
    _check_samples(folder, run, samples)
    return Saved(folder, run, samples)


def export_answers(saved: Saved, decoder: str, path: str | Path, seed: int = 0) -> Path:
    """Write a decoder's answers as a table for VLMEvalKit: index, question, answer, prediction, category.

    Tab-separated with a heading, as pandas and VLMEvalKit read it (a text with a tab or a line break is in
    quotes). `answer` is the right answer (names of objects joined by commas), `prediction` what the decoder
    said; `category` holds the result rows that the item counts in, joined by commas, without what they all
    begin with ("random", "popular").

    Args:
        saved: the run.
        decoder: its name; items that it does not answer are left out.
        path: the file to write.
        seed: which of its runs.

    Raises:
        DataError: no item was answered by such a decoder, or it has no such run.
        RunError: the file can't be written.
    """
    answered = [(index, sample) for index, sample in enumerate(saved.samples) if decoder in sample["answers"]]
    if not answered:
        names = list(dict.fromkeys(name for sample in saved.samples for name in sample["answers"]))
        raise DataError(
            f"No decoder of {saved.folder} is called {decoder!r}. "
            + did_you_mean(decoder, names)
            + f"It has: {', '.join(names) or 'no answers'}."
        )
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "answer", "prediction", "category"])
    for index, sample in answered:
        said = sample["answers"][decoder]
        if not 0 <= seed < len(said):
            raise DataError(f"{decoder} has {len(said)} run(s) in {saved.folder}, numbered from 0: none is {seed}.")
        rows = sample.get("rows") or [sample["task"]]
        category = ",".join(row.rpartition("_")[2] if sample["kind"] == "pope" else row for row in rows)
        question = sample.get("question") or sample.get("prompt", "")
        writer.writerow([index, question, _truth_text(sample.get("truth")), said[seed], category])
    target = Path(path)
    return write_whole(target.parent, target.name, table.getvalue())


def plain(value: Any) -> Any:
    """Return data that strict JSON can hold: NaN and infinities as None, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _truth_text(truth: Any) -> str:
    if isinstance(truth, list | tuple):
        return ", ".join(map(str, truth))
    return "" if truth is None else str(truth)


def write_whole(folder: Path, name: str, text: str) -> Path:
    """Write beside, then rename: whoever reads, or whenever the process dies, the file is the old or the new one.

    Raises:
        RunError: the system refuses, as when the disk is full.
    """
    part = folder / f"{name}.part"
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8", newline="") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            part.replace(folder / name)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    return folder / name


def _begun(folder: Path) -> dict[str, Any]:
    if not (folder / BEGUN).exists():
        raise DataError(
            f"{folder} holds no run (neither {RUN} nor {BEGUN}): give the --out folder of a `lvlm-guard eval run`."
        )
    begun = _read_json(folder / BEGUN)
    _check_fields(begun, {"settings": dict}, str(folder / BEGUN), "give another --out, or --start-over.")
    told = "The run has not finished: the same command goes on from where it stopped."
    empty: dict[str, Any] = {"decoders": [], "tasks": [], "compared": [], "rows": [], "flags": [], "void": []}
    return {"command": "eval run", "status": "stopped", "warnings": [told], **empty, "settings": begun["settings"]}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error


def _read_samples(path: Path) -> list[dict[str, Any]]:
    samples = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"Line {number} of {path} is no JSON: {error}.") from None
                _check_fields(sample, _SAMPLE_FIELDS, f"Line {number} of {path}", "the file was changed or cut.")
                samples.append(sample)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}. Give the run's command again: it is written anew.") from error
    return samples


def _check_fields(data: Any, fields: Mapping[str, type], where: str, hint: str) -> None:
    if not isinstance(data, dict):
        raise DataError(f"{where} is no JSON object: {hint}")
    for name, kind in fields.items():
        if not isinstance(data.get(name), kind):
            got = f"is {data[name]!r}" if name in data else "is missing"
            raise DataError(f"{where}: the field {name!r} {got[:80]}, and should be {_KINDS[kind]}; {hint}")


_KINDS: dict[type, str] = {str: "a text", dict: "an object", list: "a list"}


def _check_samples(folder: Path, run: Mapping[str, Any], samples: list[dict[str, Any]]) -> None:
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        name = (sample["task"], sample["key"])
        if name in seen:
            raise DataError(f"{folder / SAMPLES} holds the item {name[1]!r} of {name[0]} twice: the file was changed.")
        seen.add(name)
    for task in run["tasks"]:
        found = sum(sample["task"] == task.get("name") for sample in samples)
        if found != task.get("n", found):
            raise DataError(
                f"{folder / SAMPLES} holds {found} of the {task['n']} items of {task['name']}: the file was changed. "
                "Give the run's command again: it is written anew from the answers."
            )
