"""Scoring many stored answers: memory that grows by a few bytes an answer."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scoring

from lvlm_guard.evals.spec.answers import SCHEMA

DECODERS = ["greedy", *(f"method {k}" for k in range(19))]
MEASURED = """
import json, resource, sys
from lvlm_guard.evals.stats.score import score
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = score(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([loaded / 1024, peak / 1024, len(found["rows"]), found["void"]]))
"""


def stored(folder, questions, chunk=2000):
    """A run of 20 decoders, three kinds of questions, six about each picture; written piece by piece."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with (
        pq.ParquetWriter(folder / "answers.parquet", SCHEMA) as table,
        (folder / "items.jsonl").open("w", encoding="utf-8") as items,
    ):
        for start in range(0, questions, chunk):
            places = np.arange(start, min(start + chunk, questions))
            yes = places % 2 == 0
            for i in places.tolist():
                kind = ("random", "popular", "adversarial")[i // 2 % 3]
                items.write(json.dumps(scoring.item(i, i // 6, "no" if i % 2 else "yes", [f"pope_{kind}"])) + "\n")
            base = np.where(yes, 1.5, -1.5) + rng.normal(size=len(places))
            scores = (base[:, None] + rng.normal(size=(len(places), len(DECODERS))) / 2).ravel().astype(np.float32)
            n = len(scores)
            columns = {
                name: np.zeros(n, np.float32) for name in ("forwards", "local_forwards", "local_tokens", "masks")
            }
            columns |= {
                name: pa.nulls(n, SCHEMA.field(name).type) for name in ("cut_at", "failed", "proof", "baseline")
            }
            columns |= {"task": ["quiz"] * n, "split": ["test"] * n, "seed": np.zeros(n, np.int32)}
            columns |= {"item": np.repeat(places.astype(str), len(DECODERS)), "decoder": DECODERS * len(places)}
            columns |= {"picture": np.repeat((places // 6).astype(str), len(DECODERS)), "role": ["method"] * n}
            columns |= {"text": np.where(scores > 0, "Yes", "No"), "score": scores, "mass": np.full(n, 0.9, np.float32)}
            columns |= {"censored": np.zeros(n, bool), "ended": np.ones(n, bool), "tokens": np.ones(n, np.int32)}
            table.write_table(pa.table([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA))
    task = {"name": "quiz", "kind": "pope", "split": "test", "max_new_tokens": 4, "about": {}}
    note = {"settings": {}, "tasks": [task], "decoders": [scoring.decoder(name) for name in DECODERS]}
    (folder / "asked.json").write_text(json.dumps(note))
    return folder


def measured(folder):
    """MiB before, and at the peak."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True)
    loaded, peak, rows, void = json.loads(done.stdout)
    assert (void, rows > 1000) == ([], True)
    print(f"{loaded:.0f} MiB loaded, {peak:.0f} MiB at the peak")
    return loaded, peak


@pytest.mark.slow
def test_ten_thousand_answers_take_little_memory(tmp_path):
    loaded, peak = measured(stored(tmp_path / "run", 500))
    assert peak - loaded < 250


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_answers_take_half_a_kilobyte_each(tmp_path):
    loaded, peak = measured(stored(tmp_path / "run", 50_000))
    assert peak - loaded < 500
