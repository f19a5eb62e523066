"""Asks a server before its guarded names open, with masks and scores of its own choice; see `front/canary.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
from PIL import Image, ImageDraw

from lvlm_guard.images import data_url
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.canary import HEADER, RANK

TOP = 5
"""Most likely tokens whose log-probabilities are looked at; vLLM's --max-logprobs must allow it."""

CAPTION = "Describe the image."
QUESTION = "is there a dog in the image ?"
SIDE = 224  # pixels; all families make some image tokens of that

Tokens = dict[int, float]
"""Token id -> log-probability, of the `TOP` most likely ones and those asked for."""


class CanaryError(ServeError):
    """A guard does not act as it must."""


@dataclass
class Canary:
    """One server that is being checked.

    Args:
        url: of the server.
        name: plain name of the model.
        token: that the front knows it by.
        key: the server's API key, "" for none.
        rank: of the engine that answers; None where there is one.
        seconds: for one answer; the first one after a start can take long.
        patience: seconds in which the matcher service may be busy.
    """

    url: str
    name: str
    token: str
    key: str = ""
    rank: int | None = None
    seconds: float = 300
    patience: float = 120
    _numbers: Any = field(default_factory=count, repr=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= {} if self.rank is None else {RANK: str(self.rank)}
        # this machine's own server, whose certificate names another host
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=self.seconds, trust_env=False, verify=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(
        self,
        guard: str | None,
        knobs: Mapping[str, float] | None = None,
        share: float | None = None,
        *,
        tokens: int = 1,
        text: str = QUESTION,
        **fields: Any,
    ) -> list[Tokens]:
        """Return the log-probabilities of each token of an answer.

        Args:
            guard: method to ask; None: the plain model.
            knobs: of the method.
            share: what stands for the matcher (see `front.canary.Chosen`); None: the matcher service.
            tokens: of the answer.
            text: what is asked.
            fields: of the request.

        Raises:
            CanaryError: there is no such answer.
        """
        body = {
            "messages": [{"role": "user", "content": [_PICTURE, {"type": "text", "text": text}]}],
            "temperature": 0,
            "max_tokens": tokens,
            "logprobs": True,
            "top_logprobs": TOP,
            "return_tokens_as_token_ids": True,
            # its blocks are no one else's: every answer is computed from the start, in the same steps
            "cache_salt": f"canary-{self.token[:8]}-{next(self._numbers)}",
            **fields,
        }
        if knobs:
            body["vllm_xargs"] = {f"{guard}_{knob}": value for knob, value in knobs.items()}
        answer = self._answer(guard, body, share)
        try:
            steps = answer.json()["choices"][0]["logprobs"]["content"]
            found = [
                {_id(top["token"]): float(top["logprob"]) for top in [step, *step["top_logprobs"]]} for step in steps
            ]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CanaryError(f"An answer has no log-probabilities ({error!r}): {answer.text[:300]}") from error
        if not found or any(math.isnan(value) for step in found for value in step.values()):
            raise CanaryError(f"An answer has no tokens, or log-probabilities that are no numbers: {answer.text[:300]}")
        return found

    def _answer(self, guard: str | None, body: dict[str, Any], share: float | None) -> httpx.Response:
        model = f"{self.name}-{guard}" if guard else self.name
        headers = {HEADER: self.token if share is None else f"{self.token} {share!r}"}
        end = time.monotonic() + self.patience
        while True:
            try:
                answer = self._http.post("/v1/chat/completions", json={"model": model, **body}, headers=headers)
            except httpx.HTTPError as error:
                raise CanaryError(f"{model} gave no answer ({type(error).__name__}: {error}).") from error
            if answer.status_code == 503 and share is None and time.monotonic() < end:
                time.sleep(1)  # the matcher is busy, perhaps with other servers' questions
                continue
            if answer.status_code != 200:
                raise CanaryError(f"{model} answered {answer.status_code}: {answer.text[:500]}")
            ran = answer.headers.get(f"x-{guard}", "") if guard else ""
            if guard and not ran.startswith("on;"):
                raise CanaryError(f"{model} answered without saying that {guard} ran (X-{guard.upper()}: {ran!r}).")
            return answer


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _drawn() -> dict[str, Any]:
    """Return a picture that is not one colour anywhere, as part of a message."""
    image = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 30, 110, 120), fill=(200, 60, 40))
    draw.ellipse((120, 90, 205, 200), fill=(40, 120, 210))
    return {"type": "image_url", "image_url": {"url": data_url(image, compress_level=6)}}


_PICTURE = _drawn()
