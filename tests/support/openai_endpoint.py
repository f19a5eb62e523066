"""A real OpenAI-compatible endpoint in this process: the embedded model, plain and guarded, with faults on demand.

It stands for the guarded vLLM server (specs/vllm.md, section 6): `embedded` is plain, `embedded-agla`, `embedded-vote`
and others are guarded; knobs come as `vllm_xargs`; header and body say which guard ran.

    with OpenAIEndpoint(load()) as served:
        OpenAI(base_url=served.url, api_key=served.key).chat.completions.create(model="embedded-agla", ...)
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from lvlm_guard import guard
from lvlm_guard.api import resolve
from lvlm_guard.evals.decoders.logits import DocumentSampler
from lvlm_guard.evals.infer.generate import answer_length
from lvlm_guard.evals.tasks.world import NOUNS
from lvlm_guard.pretrained import load_model

SHOWN = {"agla": ("alpha", "beta"), "vote": ("lam", "beta"), "vcd": ("alpha", "beta"), "apc": ("beta",)}


def load() -> tuple[Any, Any]:
    """Return the guarded embedded model and processor."""
    return guard(*load_model("embedded"))


@dataclass
class Request:
    """A chat request as it came: its body, and the wire's number of it."""

    number: int
    body: dict[str, Any]


@dataclass
class Reply:
    """What the endpoint is about to send; a fault changes it."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    wait: float = 0.0
    pace: float = 0.0  # seconds between the events of a stream


Fault = Callable[[Request, Reply], Reply]


class OpenAIEndpoint:
    """Serves until the block ends.

    Args:
        pair: of `load`.
        guards: which guarded names it has.
        key: the API key that it wants; "": none.
        plain: the plain model's name.
        usual: guard -> knobs that it has unasked.
    """

    def __init__(
        self,
        pair: tuple[Any, Any],
        guards: tuple[str, ...] = ("agla", "vote"),
        key: str = "",
        plain: str = "embedded",
        usual: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.model, self.processor = pair
        self.names = {plain: "", **{f"{plain}-{name}": name for name in guards}}
        self.key, self.usual = key, {"vote": {"objects": NOUNS}} | (usual or {})
        self.seen: list[Request] = []
        self.sockets: list[socket.socket] = []
        self.at_once, self.most_at_once, self.given_up = 0, 0, 0
        self._counting, self._computing = threading.Lock(), threading.Lock()
        self.fault: Fault | None = None

    def __enter__(self) -> OpenAIEndpoint:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                endpoint.sockets.append(self.connection)

            def do_GET(self) -> None:
                self._send(endpoint.listing(self.path, self.headers.get("Authorization", "")))

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(endpoint.post(self.path, self.headers.get("Authorization", ""), raw))

            def _send(self, reply: Reply) -> None:
                raw = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in (reply.headers | {"Content-Type": reply.kind}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw) + 2 * bool(reply.pace)))
                    self.end_headers()
                    for event in raw.split(b"\n\n") if reply.pace else ():
                        self.wfile.write(event + b"\n\n")
                        time.sleep(reply.pace)
                    self.wfile.write(b"" if reply.pace else raw)
                except (BrokenPipeError, ConnectionResetError):
                    endpoint.given_up += 1

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self.sockets:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @contextmanager
    def faulty(self, fault: Fault) -> Iterator[None]:
        """Change replies while the block lasts; requests are numbered from 0."""
        self.fault, self.seen = fault, []
        try:
            yield
        finally:
            self.fault = None

    def forget(self) -> None:
        """Begin `seen` anew, once what a client has sent and then given up has come in as well."""
        count = -1
        while self.at_once or count != len(self.seen):
            count = len(self.seen)
            time.sleep(0.2)
        self.seen = []

    def listing(self, path: str, authorization: str) -> Reply:
        if self._denied(authorization):
            return _error(401, "invalid api key")
        if path != "/v1/models":
            return Reply(404, "<html>not found</html>", kind="text/html")
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "vllm"} for name in self.names]
        return Reply(200, {"object": "list", "data": cards})

    def post(self, path: str, authorization: str, raw: bytes) -> Reply:
        if self._denied(authorization):
            return _error(401, "invalid api key")
        if path != "/v1/chat/completions":
            return _error(404, f"{path} is not served here")
        with self._counting:
            request = Request(len(self.seen), json.loads(raw))
            self.seen.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self._answer(request.body)
            if self.fault is not None:
                reply = self.fault(request, reply)
            time.sleep(reply.wait)
        finally:
            with self._counting:
                self.at_once -= 1
        return reply

    def _denied(self, authorization: str) -> bool:
        return bool(self.key) and authorization != f"Bearer {self.key}"

    def _answer(self, body: dict[str, Any]) -> Reply:
        if body["model"] not in self.names:
            return _error(404, f"The model `{body['model']}` does not exist.")
        name = self.names[body["model"]]
        knobs = {}
        for key, value in (body.get("vllm_xargs") or {}).items():
            method, _, knob = key.partition("_")
            if method != name or knob not in SHOWN.get(name, ()):
                return _error(400, f"{key} needs another model")
            knobs[knob] = value
        if not any(part["type"] == "image_url" for turn in body["messages"] for part in turn["content"]):
            name = ""  # nothing to guard: answered plainly, and said to be
        method = resolve(name, self.usual.get(name, {}) | knobs) if name else None
        with self._computing:
            made = [
                self._generate(body | {"seed": body["seed"] + i} if i else body, method)
                for i in range(body.get("n") or 1)
            ]
        text, tokens, asked = made[0][0], sum(one[1] for one in made), made[0][3]
        shown = {knob: getattr(method, knob) for knob in SHOWN.get(name, ())} | ({"mask": "blip-v1"} if name else {})
        headers = {"X-AGLA": "off"}
        if name:
            headers = {f"X-{name.upper()}": "; ".join(["on", *(f"{k}={v}" for k, v in shown.items())])}
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": said},
                "finish_reason": "stop" if ended else "length",
                "logprobs": logprobs,
            }
            for i, (said, _, ended, _, logprobs) in enumerate(made)
        ]
        told = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": next(iter(self.names)),  # the first served name, as vLLM does
            "choices": choices,
            "usage": {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens},
            "lvlm_guard": {"method": name or None, "knobs": shown},
        }
        if body.get("stream"):
            return Reply(200, _streamed(told, text), headers, "text/event-stream")
        return Reply(200, told, headers)

    def _generate(self, body: dict[str, Any], method: Any) -> tuple[str, int, bool, int, dict[str, Any] | None]:
        talk = [{"role": m["role"], "content": [_part(part) for part in m["content"]]} for m in body["messages"]]
        inputs = self.processor.apply_chat_template(
            [talk], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        start = inputs["input_ids"].shape[1]
        drawn = {}
        if body.get("temperature", 1.0) > 0:
            sampler = DocumentSampler(body["seed"], [""], start, temperature=body["temperature"])
            drawn = {"logits_processor": [sampler]}
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                guard=method or False,
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                **drawn,
            )
        answer = made.sequences[0, start:].tolist()
        length, ended = answer_length(answer, {self.model.generation_config.eos_token_id})
        text = self.processor.decode(answer, skip_special_tokens=True)
        steps = made.logits if drawn else made.scores  # a draw's scores hold the token that was drawn alone
        told = self._logprobs(answer[:length], steps, body.get("top_logprobs", 0)) if body.get("logprobs") else None
        return f" {text}", length, ended, start, told  # vLLM leaves the space before a first word

    def _logprobs(self, answer: list[int], scores: Any, top: int) -> dict[str, Any]:
        """Return what vLLM tells: -9999 for what was cut, tokens spelled as they follow on each other."""
        steps = []
        for token, row in zip(answer, scores, strict=False):
            told = row[0].float().log_softmax(-1).clamp_min(-9999.0)
            likeliest = told.topk(top).indices.tolist() if top else []
            named = [{"token": self._spelled(i), "logprob": told[i].item()} for i in (*likeliest, token)]
            steps.append({**named[-1], "top_logprobs": named[:-1]})
        return {"content": steps}

    def _spelled(self, token: int) -> str:
        return (
            "" if token in self.processor.tokenizer.all_special_ids else f" {self.processor.tokenizer.decode([token])}"
        )


def _streamed(told: dict[str, Any], text: str) -> str:
    """Return an answer as the front streams it: a word a chunk, the proof in the first and the last one."""
    words = text.split(" ")
    pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    chunks = []
    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        choice = {"index": 0, "delta": {"content": piece}, "finish_reason": "stop" if last else None}
        chunk = {key: told[key] for key in ("id", "created", "model")}
        chunk |= {"object": "chat.completion.chunk", "choices": [choice]}
        chunks.append(chunk | ({"lvlm_guard": told["lvlm_guard"]} if last or not i else {}))
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url":
        return part
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return {"type": "image", "image": Image.open(BytesIO(base64.b64decode(data))).convert("RGB")}


def _error(status: int, message: str) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "error", "code": status}})
