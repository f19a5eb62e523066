"""The wire to an OpenAI-compatible endpoint: lmms-eval's own client, and what it drops, picked up on the way.

lmms-eval's client makes the messages and sends several requests at once. It keeps texts only: no finish_reason, no
headers, no guard's knobs in the body, and a failed request becomes a text like any answer. So a `Line` puts a `_Tap`
in the place of its `client` attribute. The tap hands each payload to the official `openai` client, which retries with
back-off and heeds Retry-After, and keeps what came back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lvlm_guard.errors import MissingExtraError
from lvlm_guard.evals.infer.server.endpoint import NO_KEY, Endpoint, short
from lvlm_guard.evals.stats.validity import failed_text

Talk = list[dict[str, Any]]
"""Chat messages, as `Item.conversation` returns them."""


@dataclass(frozen=True)
class Reply:
    """What came back of one request.

    Args:
        text: the answer.
        finish: why it ended: "stop", "length", or another word of the server's; None: not told.
        tokens: of the answer; None: not told.
        seconds: of the try that was answered.
        headers, body: of the response.
        error: why there is no answer; None: there is one.
    """

    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class NoChatError(Exception):
    """A response with status 200 that is no chat completion."""


class Line:
    """One model name at an endpoint, asked through lmms-eval's client (`lmms_eval.models.chat.openai`).

    Args:
        endpoint: where.
        name: of the model there.
        fields: of every request's body: temperature, top_p, and fields that only this server knows.
        at_once: requests in flight.
    """

    def __init__(self, endpoint: Endpoint, name: str, fields: Mapping[str, Any], at_once: int = 1) -> None:
        self.name, self.fields, self.at_once = name, dict(fields), at_once
        self._tap = _Tap(endpoint.client)
        self._model = _lmms_client(endpoint, name, at_once)
        self._model.client = self._tap

    def ask(self, talks: Sequence[Talk], max_new_tokens: int, seeds: Sequence[int] | None = None) -> list[Reply]:
        """Return what came back of each conversation; an error is a reply, too.

        Args:
            talks: what is asked.
            max_new_tokens: of an answer.
            seeds: of each request; None: none is sent.
        """
        from lmms_eval.api.instance import Instance

        own = self.fields | {"max_tokens": max_new_tokens}
        self._tap.begin([own | ({} if seeds is None else {"seed": seeds[place]}) for place in range(len(talks))])
        self._model.task_dict = {"eval": {"asked": [_for_lmms_eval(talk) for talk in talks]}}
        requests = []
        for place in range(len(talks)):
            # the client hands on a seed as it is: here it says which request a payload belongs to
            sent = {"max_new_tokens": max_new_tokens, "temperature": own["temperature"], "seed": place}
            arguments = ("", lambda messages: messages, sent, place, "eval", "asked")
            labels = {"task": "eval", "doc_id": place, "repeats": 1}
            requests.append(Instance("generate_until", arguments, place, labels))
        said = self._model.generate_until(requests)
        return [self._tap.reply(place, result.text, self.at_once) for place, result in enumerate(said)]


class _Tap:
    """Stands where lmms-eval's client keeps its `openai` client."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._fields: list[dict[str, Any]] = []
        self._replies: dict[int, Reply] = {}
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def begin(self, fields: list[dict[str, Any]]) -> None:
        """Expect as many requests, whose bodies get these fields."""
        self._fields, self._replies = fields, {}

    def create(self, *, model: str, messages: list[dict[str, Any]], seed: int, **_: Any) -> Any:
        """Send a request with its own fields, keep what comes back, and return or raise it.

        What else lmms-eval puts into the payload is left out: for a name with "o1" in it, such as llava-o1, it
        drops the temperature, which would turn greedy answers into sampled ones.
        """
        own = dict(self._fields[seed])
        known = {name: own.pop(name) for name in ("max_tokens", "temperature", "top_p", "seed") if name in own}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=own or None, **known
            )
            told = raw.parse()
            if isinstance(told, str) or not getattr(told, "choices", None):
                kind = raw.headers.get("content-type", "none")
                raise NoChatError(f"status {raw.http_response.status_code}, content type {kind}: {short(raw.text)}")
            choice = told.choices[0]
            if choice.message is None:
                raise NoChatError(f"a choice without a message: {short(raw.text)}")
            choice.message.content = choice.message.content or ""  # null is an empty answer
            self._replies[seed] = Reply(
                text=choice.message.content,
                finish=choice.finish_reason,
                tokens=told.usage.completion_tokens if told.usage else None,
                seconds=raw.elapsed.total_seconds(),
                headers=dict(raw.headers),
                body=told.model_dump(),
            )
        except Exception as error:
            self._replies[seed] = Reply(error=error)
            raise
        return told

    def reply(self, place: int, text: str, at_once: int) -> Reply:
        """Return what came back of one request, with lmms-eval's text and its share of the time."""
        reply = self._replies.get(place)
        if reply is None:
            return Reply(error=NoChatError(f"lmms-eval's client did not send it: {short(text)}"))
        if reply.error is None and (failed_text(text) or text != reply.text):
            return Reply(error=NoChatError(f"lmms-eval's client made {short(text)} of {short(reply.text)}"))
        sharing = min(at_once, len(self._fields))
        return Reply(
            text, reply.finish, reply.tokens, reply.seconds / sharing, reply.headers, reply.body, error=reply.error
        )


def _lmms_client(endpoint: Endpoint, name: str, at_once: int) -> Any:
    from loguru import logger

    try:
        from lmms_eval.models.chat.openai import OpenAICompatible
    except ImportError as error:
        raise MissingExtraError("Asking a server needs lmms-eval: pip install 'lvlm-guard[eval]'.") from error
    logger.disable("lmms_eval.models")  # it logs each failed request, which is told in our own words

    class Quiet(OpenAICompatible):  # type: ignore[misc]  # lmms-eval has no types
        rank = 1  # rank 0 draws a progress bar; the run has its own

    return Quiet(
        model_version=name,
        base_url=endpoint.url,
        api_key=NO_KEY,  # never used: its client is replaced
        max_retries=1,  # the openai client retries
        num_concurrent=at_once,
        adaptive_max_concurrency=at_once,
        prefix_aware_queue=False,
    )


def _for_lmms_eval(talk: Talk) -> Talk:
    """Return chat messages as lmms-eval writes them: a picture stands under "url", a text in a part."""
    made = []
    for message in talk:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        made.append(
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "url": part.get("image", part.get("url"))} if part["type"] == "image" else part
                    for part in parts
                ],
            }
        )
    return made
