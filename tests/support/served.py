"""The real server as its users start it, and talks with it: vLLM, front, matcher service, embedded model."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI
from PIL import Image

from lvlm_guard.embedded import world

KEY = "a key of this test"
PICTURES = 2
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "127.0.0.1", "VLLM_API_KEY": KEY,
    "VLLM_LOGGING_LEVEL": "INFO",  # its routes stand there
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One choice of an answer, and what is said of it.

    Args:
        text, tokens, finish: of the choice.
        prompt: its tokens.
        guard: the field `lvlm_guard` of the body.
        headers: those that speak of guards.
        whole: the completion as the client parsed it.
    """

    text: str
    tokens: list[int]
    finish: str
    prompt: list[int]
    guard: dict[str, Any]
    headers: dict[str, str]
    whole: Any


class Server:
    """`lvlm-guard serve` with the embedded model, plain and guarded by agla and vote; two pictures a request.

    Args:
        folder: for its log.
        options: further ones of the command.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "server.log"
        command = [*("serve", "--model", "embedded", "--guards", "agla,vote", "--port", "0", "--json")]
        command += ["--most-pictures", str(PICTURES), *options]
        self._log = self.log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lvlm_guard", *command],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        said = b""
        while not said.endswith(b"\n}\n"):
            line = self._process.stdout.readline()
            assert line, f"The server did not start:\n{self.log.read_text()[-6000:]}"
            said += line
        (row,) = json.loads(said)["rows"]
        self.url: str = row["url"]
        self.maskd: str = row["maskd"]
        self.names: list[str] = row["names"]

    def stop(self) -> int:
        """Ask it to stop, as a supervisor does; returns its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(90)
        finally:
            self._process.kill()
            self._log.close()

    @functools.cached_property
    def client(self) -> OpenAI:
        """The official client, which tries nothing twice."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def async_client(self) -> AsyncOpenAI:
        """For many at once: where its two caches of pictures drift apart, vLLM counts on being asked again."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=2, timeout=240)

    def ask(
        self, model: str, talk: list[dict[str, Any]], knobs: Mapping[str, float] | None = None, **fields: Any
    ) -> Answer:
        """Return the first choice of a chat, greedy where `fields` don't say otherwise; knobs as "agla_alpha"."""
        return answer_of(self.client.chat.completions.with_raw_response.create(**body(model, talk, knobs, **fields)))


def body(model: str, talk: list[dict[str, Any]], knobs: Mapping[str, float] | None = None, **fields: Any) -> Any:
    """Return the arguments of `chat.completions.create`."""
    extra = {"return_token_ids": True} | fields.pop("extra_body", {})
    if knobs:
        extra["vllm_xargs"] = dict(knobs)
    return {"model": model, "messages": talk, "temperature": 0, "max_tokens": 40, "extra_body": extra} | fields


def answer_of(raw: Any) -> Answer:
    """Return the first choice of a raw response of the client."""
    told = raw.parse()
    choice = told.choices[0]
    headers = {name: value for name, value in raw.headers.items() if name in ("x-agla", "x-vote")}
    return Answer(
        choice.message.content, choice.token_ids, choice.finish_reason, told.prompt_token_ids, told.lvlm_guard, headers,
        told,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def scenes() -> world.Scenes:
    return world.scenes("test_cap", 64)


@functools.lru_cache(maxsize=64)
def data_url(scene: int) -> str:
    held = io.BytesIO()
    Image.fromarray(scenes().image[scene]).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def turn(text: str, *pictures: int, role: str = "user") -> dict[str, Any]:
    """Return a message with scenes."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(scene)}} for scene in pictures]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}
