"""The operator's page: its client runs against a real server as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("vllm")

import served

from lvlm_guard.embedded.world import scenes

PAGE = Path(__file__).parents[3] / "docs" / "operator.md"


def test_the_pages_client_gets_a_guarded_answer_and_its_proof(server, tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    Image.fromarray(scenes("test", 1).image[0]).save(tmp_path / "photo.png")
    ours = {"http://127.0.0.1:8000": server.url, "choose-one": served.KEY, "llava-agla": "embedded-agla"}
    for written, real in ours.items():
        assert block.count(written) == 1
        block = block.replace(written, real)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'method': 'agla'" in done.stdout
    assert "'alpha': 1.5" in done.stdout
