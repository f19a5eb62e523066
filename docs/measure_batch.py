"""How many rows `lvlm-guard batch` answers with one worker and with two, as processes and as Ray's actors.

    OMP_NUM_THREADS=1 python docs/measure_batch.py > docs/results/batch.json

Each block gives every way the same captions to write, once few and once many, in fresh folders; the ways take turns.
The rate is of the rows that the many have more: what a process pays once (its start, the model, the plan) is told
apart. After each run its files are read: every row must be there once and without an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.dataset as ds
from PIL import Image

from lvlm_guard.bench.intervals import median_interval, median_ratio
from lvlm_guard.cli.console import print_json, quiet_libraries
from lvlm_guard.embedded.world import scenes

BATCH = [sys.executable, "-m", "lvlm_guard", "batch"]
WAYS = {
    "one process": [[]],
    "two processes": [["--share", "0/2"], ["--share", "1/2"]],
    "Ray, one actor": [["--engine", "ray", "--workers", "1"]],
    "Ray, two actors": [["--engine", "ray", "--workers", "2"]],
}
FEW, MANY, BLOCKS = 256, 1536, 3
SHARD_ROWS = 128


def drawn(folder: Path, n: int) -> Path:
    """Write n pictures of the world, of which only the training split has so many, and the file that names them."""
    lines = []
    for i, picture in enumerate(scenes("train", n).image):
        Image.fromarray(picture).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "prompt": "describe the image ."}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def answered(way: list[list[str]], data: Path, n: int) -> float:
    """Return the seconds of the first n rows' answers.

    Raises:
        RuntimeError: a process failed, or a row is missing, there twice, or wrong.
    """
    first = data.with_name(f"first-{n}.jsonl")
    first.write_text("".join(data.open().readlines()[:n]))
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        runs = [
            subprocess.Popen(
                [*BATCH, str(first), "--out", out, "--shard-rows", str(SHARD_ROWS), "--json", *more],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for more in way
        ]
        told = [run.communicate()[1] for run in runs]
        seconds = time.perf_counter() - began
        if any(run.returncode for run in runs):
            raise RuntimeError(f"A process of {way} failed:\n{''.join(told)}")
        rows = ds.dataset(sorted(Path(out).glob("*.parquet"))).to_table(["index", "error"]).to_pylist()
    if sorted(row["index"] for row in rows) != list(range(n)) or any(row["error"] for row in rows):
        raise RuntimeError(f"{way} did not answer each of {n} rows once.")
    return seconds


def measured() -> list[dict[str, object]]:
    """Return rows a second, the ratio to one process, and the seconds of what is paid once.

    Ctrl-C ends with the blocks that are whole.
    """
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        data = drawn(Path(folder), MANY)
        for block in range(BLOCKS):
            for way in list(WAYS)[:: 1 if block % 2 else -1]:
                few, many = (answered(WAYS[way], data, n) for n in (FEW, MANY))
                rates[way].append((MANY - FEW) / (many - few))
                starts[way].append(few - FEW / rates[way][-1])
                sys.stderr.write(f"block {block + 1} of {BLOCKS}, {way}: {rates[way][-1]:.0f} rows a second\n")
    blocks = min(map(len, rates.values()))
    rows: list[dict[str, object]] = []
    for way in WAYS if blocks else ():
        for metric, found in (
            ("rows_per_s", median_interval(rates[way][:blocks])),
            ("rate_ratio", median_ratio(rates[way][:blocks], rates["one process"][:blocks])),
            ("start_s", median_interval(starts[way][:blocks])),
        ):
            value, low, high = found
            told = {"value": value, "low": low, "high": high, "n": blocks * (MANY - FEW), "blocks": blocks}
            rows.append({"model": "embedded", "method": "agla", "way": way, "metric": metric, **told})
    return rows


if __name__ == "__main__":
    quiet_libraries()
    print_json("docs/measure_batch.py", measured())
