"""`lvlm-guard serve --upstream` as its users start it, in an environment without vLLM."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import Result
from front_server import EngineStandIn, data_url, serving, turn
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard.cli.app import app
from lvlm_guard.embedded import world

UPSTREAM_KEY, KEY = "sk-the-upstreams-own-key", "what-clients-send"


def said(*options: str) -> Result:
    return CliRunner().invoke(app, ["serve", *options])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--upstream", "ftp://x"], "no address"),
        (["--upstream", "https://user:pw@x/v1"], "LVLM_GUARD_UPSTREAM_KEY"),
        (["--upstream", "http://x", "--guards", "agla"], "Nothing inside"),
        (["--upstream", "http://x", "--guards", "verfy"], "Did you mean 'verify'"),
        (["--upstream", "http://x", "--model", "embedded"], "--served-model-name"),
        (["--upstream", "http://x", "--max-model-len", "4"], "option of vLLM"),
        (["--upstream", "http://127.0.0.1:9"], "lists no models"),
    ],
)
def test_what_can_t_be_checked_is_told_before_anything_starts(options: list[str], why: str) -> None:
    answer = said(*options)
    assert answer.exit_code != 0
    assert why in " ".join(answer.output.replace("│", " ").split())


@pytest.mark.slow
def test_the_command_serves_checks_without_vllm_and_never_tells_its_key(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('there is no vLLM here')")
    objects = tmp_path / "objects.txt"
    objects.write_text("\n".join(world.CLASSES))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "LVLM_GUARD_UPSTREAM_KEY": UPSTREAM_KEY,
        "VLLM_API_KEY": KEY,
        "OMP_NUM_THREADS": "1",
    }
    engine, log = EngineStandIn(), tmp_path / "log"
    with serving(engine.app()) as upstream, log.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "lvlm_guard", "serve", "--upstream", upstream, "--port", "0", "--json",
             "--matcher", "embedded", "--objects", str(objects), "--upstream-concurrency", "3"],
            env=environment, stdout=subprocess.PIPE, stderr=err,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            printed = b""
            while not printed.endswith(b"\n}\n"):
                line = process.stdout.readline()
                assert line, log.read_text()
                printed += line
            (row,) = json.loads(printed)["rows"]
            assert row["names"][:3] == ["tiny", "tiny-verify", "tiny-best"]
            assert httpx.get(row["url"] + "/ready", trust_env=False).status_code == 200
            held = io.BytesIO()
            Image.fromarray(world.scenes("test", 1).image[0]).save(held, "PNG")
            with openai.OpenAI(base_url=row["url"] + "/v1", api_key=KEY) as client:
                for model in ("tiny", "tiny-verify", "tiny-best"):
                    answer = client.chat.completions.create(
                        model=model, messages=[turn("is there a dog?", data_url(held.getvalue()))]
                    )
                    found = getattr(answer, "lvlm_guard", {"verdicts": [{"object": "dog"}]})["verdicts"]
                    assert "dog" in {one["object"] for one in found}
                engine.status = 500
                with pytest.raises(openai.APIStatusError):
                    client.with_options(max_retries=0).chat.completions.create(
                        model="tiny-verify", messages=[turn("is there a dog?", data_url(held.getvalue()))]
                    )
            assert {one["authorization"] for one in engine.headers} == {f"Bearer {UPSTREAM_KEY}"}
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, log.read_text()
    for told in (log.read_bytes(), printed, rest):
        assert UPSTREAM_KEY.encode() not in told
        assert KEY.encode() not in told
