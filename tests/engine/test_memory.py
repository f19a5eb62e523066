"""A guarded call holds one KV cache, one vision encoding and the matcher more than a plain one, and little else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
MEASURE = """
import gc, json, sys
sys.path.insert(0, {support!r})
import tiny, torch
from matchers import Brightness
from lvlm_guard import guard, methods
from lvlm_guard.bench.memory import peak_meter

tiny._text = lambda vocab: dict(
    vocab_size=vocab, hidden_size=512, intermediate_size=768, num_hidden_layers=12, num_attention_heads=8,
    num_key_value_heads=8, max_position_embeddings=4096, pad_token_id=3, bos_token_id=1, eos_token_id=2)
agla = methods.AGLA(beta=0.01, matcher=Brightness())
model, processor = guard(*tiny.make("llava", dtype=torch.float32, scale=1.0), agla)
model.generation_config.eos_token_id = None
inputs = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What is there? " * 130), return_tensors="pt")
length = inputs["input_ids"].shape[1]
run = dict(max_new_tokens=6, do_sample=False)
peaks = {{}}
calls = dict(plain=dict(guard=False)) | {{how: dict(guard_execution=how) for how in ("lazy", "auto", "batched")}}
for name, extra in list(calls.items()) * 2:
    gc.collect()
    peak = peak_meter(model.device)
    model.generate(**inputs, **run, **extra)
    peaks[name] = peak()
cache = 2 * 12 * 512 * (length + 6) * 4 / 2**20
print(json.dumps(dict(peaks, cache=cache, length=length)))
"""


@pytest.mark.slow
def test_a_second_branch_costs_one_cache_more():
    code = MEASURE.format(support=str(SUPPORT))
    # every large tensor from the system and back to it at once, so that the high-water mark is what is held
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**os.environ, **exact}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mib = json.loads(done.stdout.splitlines()[-1])
    assert mib["cache"] > 50
    for execution in ("lazy", "auto"):
        assert mib[execution] - mib["plain"] < mib["cache"] + 4
    # stacked, both prompts are read in one pass, whose activations are twice as large for a moment
    assert mib["batched"] - mib["plain"] < 1.6 * mib["cache"]
