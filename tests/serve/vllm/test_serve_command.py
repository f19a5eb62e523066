"""`lvlm-guard serve` for real: started, asked, its parts killed, stopped; nothing is left of it, however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import psutil
from openai import InternalServerError, OpenAI
from PIL import Image

from lvlm_guard.embedded.world import scenes

KEY = "secret-key"
FOR_A_START = 300.0
pytestmark = pytest.mark.timeout(600)


class Served:
    """A server as its users start it.

    Args:
        folder: for its output.
        options: of the command.
        before: of its environment.
    """

    def __init__(self, folder: Path, *options: str, **before: str) -> None:
        self._out, self.log = folder / "out", folder / "log"
        command = [
            sys.executable,
            "-m",
            "lvlm_guard",
            "serve",
            "--model",
            "embedded",
            "--port",
            "0",
            "--json",
            *options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_API_KEY": KEY, **before}
        with self._out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
        self._seen: set[psutil.Process] = set()

    def until(self, true: Callable[[], Any], seconds: float = FOR_A_START) -> Any:
        """Wait until something is true, noting every process that is started meanwhile."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            self.children()
            time.sleep(0.05)
        return found

    def row(self) -> dict[str, Any]:
        """Return what is said of a server that is open."""

        def said() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            return self._out.read_bytes().endswith(b"\n}\n")

        self.until(said)
        (row,) = json.loads(self._out.read_bytes())["rows"]
        return dict(row)

    def children(self) -> list[psutil.Process]:
        """Return all that runs below it."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen |= set(found)
        return found

    def child(self, text: str) -> psutil.Process:
        """Return the process whose command line has a text."""

        def found() -> psutil.Process | None:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            for child in self.children():
                try:
                    if text in " ".join(child.cmdline()):
                        return child
                except psutil.Error:
                    continue
            return None

        process: psutil.Process = self.until(found)
        return process

    def ended(self) -> int:
        """Return its exit status."""
        self.until(lambda: self.process.poll() is not None)
        return self.process.returncode

    def left(self) -> list[str]:
        """Return what still runs of all that it started, after a while."""
        end = time.monotonic() + 20
        while (alive := [process for process in self._seen if _alive(process)]) and time.monotonic() < end:
            time.sleep(0.1)
        return [str(process) for process in alive]

    def close(self) -> None:
        """End it, and what it left."""
        self.children()
        self.process.kill()
        self.process.wait()
        for process in self._seen:
            if _alive(process):
                process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(*options: str, **before: str) -> Served:
        made.append(Served(tmp_path, *options, **before))
        return made[-1]

    yield start
    for one in made:
        one.close()


def asked(row: dict[str, Any], model: str, question: str = "is there a person in the image ?", number: int = 0) -> Any:
    held = io.BytesIO()
    Image.fromarray(scenes("test", number + 1).image[number]).save(held, "PNG")
    picture = {"url": "data:image/png;base64," + b64encode(held.getvalue()).decode()}
    content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": question}]
    client = OpenAI(base_url=row["url"] + "/v1", api_key=KEY, max_retries=0, timeout=60)
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)


def test_it_starts_answers_survives_its_matcher_and_stops_cleanly(served: Callable[..., Served]) -> None:
    server = served("--served-model-name", "one,two", "--max-num-seqs", "8")
    row = server.row()
    assert row["guards"] == ["agla", "vote"]
    assert row["names"] == [name + guard for name in ("one", "two") for guard in ("", "-agla", "-vote")]
    assert row["pid"] == server.process.pid
    assert "A twin engine runs every step on two branches" in server.log.read_text()
    client = OpenAI(base_url=row["url"] + "/v1", api_key=KEY)
    assert [model.id for model in client.models.list()] == row["names"]
    assert asked(row, "one").lvlm_guard == {"method": None, "knobs": {}}
    masked = asked(row, "two-agla").lvlm_guard
    assert masked == {"method": "agla", "knobs": {"alpha": 2.0, "beta": 0.5}, "mask": row["matcher"]}
    caption = asked(row, "one-vote", "please describe this image in detail .")
    assert caption.lvlm_guard["scores"] == row["matcher"]
    assert caption.choices[0].message.content.strip().startswith("the image shows")

    server.child("lvlm_guard.serve.maskd").kill()
    with pytest.raises(InternalServerError) as refused:  # a picture that nobody has a mask of
        asked(row, "one-agla", number=1)
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert asked(row, "one", number=1).lvlm_guard["method"] is None
    server.until(lambda: f"back at {row['maskd']}" in server.log.read_text())
    assert asked(row, "one-agla", number=1).lvlm_guard["mask"] == row["matcher"]

    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert server.left() == []


def test_vote_leaves_the_model_as_it_is_and_all_ends_with_vllm(served: Callable[..., Served]) -> None:
    server = served("--guards", "vote", "--api-server-count", "2")
    row = server.row()
    assert row["names"] == ["embedded", "embedded-vote"]
    assert "twin" not in server.log.read_text().lower()
    for number in range(4):  # of either process
        assert asked(row, "embedded-vote", number=number).lvlm_guard["method"] == "vote"
    server.children()
    server.child("EngineCore").kill()
    assert server.ended() == 1
    assert "vLLM ended" in server.log.read_text()
    assert server.left() == []


def test_a_guard_that_does_not_act_never_opens(served: Callable[..., Served], tmp_path: Path) -> None:
    # every process of Python imports it; what it breaks is broken in the engine alone
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import lvlm_guard.serve.vote.counting as counting\n"
        "counting.Counting.__call__ = lambda self, logits, ballots, prefixes: logits\n"
    )
    server = served("--guards", "vote", PYTHONPATH=str(broken))
    assert server.ended() == 1
    assert "vote does not guard (cut)" in server.log.read_text()
    assert server._out.read_bytes() == b""
    assert server.left() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_nothing_is_left_when_it_is_ended_while_it_starts(
    served: Callable[..., Served], number: signal.Signals
) -> None:
    server = served("--guards", "vote")
    server.child("EngineCore")
    server.children()
    server.process.send_signal(number)
    assert server.ended() == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert server.left() == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--enable-lora",), "LoRA is applied to rows of one branch only"),
        (("--api-key", "x"), "VLLM_API_KEY"),
        (("--guards", "vote", "--spec-method=ngram"), "Speculative decoding"),
        (("--maskd", "http://127.0.0.1:1"), "can't be reached"),
        (("--objects", "/nowhere"), "The objects could not be read"),
    ],
)
def test_what_would_break_a_guard_is_refused_before_anything_starts(
    served: Callable[..., Served], options: tuple[str, ...], reason: str
) -> None:
    server = served(*options)
    assert server.ended() in (1, 2)
    told = server.log.read_text()
    assert reason in told
    assert "Starting vLLM" not in told


@pytest.mark.parametrize(
    ("option", "guard", "why"),
    [
        ("middleware: mine.Front", "vote", "would go around the guard"),
        ('compilation-config: \'{"mode": 0, "cudagraph_mm_encoder": true}\'', "agla", "leave the second view out"),
    ],
)
def test_a_file_of_options_can_leave_neither_the_front_nor_the_second_view_out(
    served: Callable[..., Served], tmp_path: Path, option: str, guard: str, why: str
) -> None:
    (tmp_path / "options.yaml").write_text(f"{option}\n")
    server = served("--guards", guard, "--config", str(tmp_path / "options.yaml"))
    assert server.ended() == 1
    assert why in server.log.read_text()
    assert server.left() == []
