"""What can't be asked is refused before any question, and a server that can't be asked is told at once."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from openai_endpoint import OpenAIEndpoint
from server_runs import SMALL

from lvlm_guard.endpoint import Endpoint
from lvlm_guard.errors import GuardError, KnobError, ServerError, UnknownNameError
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer.server import server_run

REFUSED: list[tuple[dict[str, Any], type[GuardError], str]] = [
    ({"model": "embeded"}, KnobError, r"no model 'embeded'.*Did you mean 'embedded'\?.*embedded-agla"),
    ({"methods": ("vcd",)}, KnobError, r"no model 'embedded-vcd'.*leave vcd out of --methods"),
    ({"methods": ("alga",)}, UnknownNameError, "'alga'.*'agla'"),
    ({"methods": ("agla", "agla-random")}, DataError, "'agla-random' needs the matcher itself"),
    ({"methods": ("agla", "matcher")}, DataError, "'matcher' needs the matcher itself"),
    ({"model": "embedded-agla", "methods": ("greedy",)}, RunError, "answers with the guard agla on.*the plain name"),
    ({"knobs": {"agla": {"frame": "original"}}}, KnobError, "takes no knob 'frame' for agla. It has: alpha, beta"),
    ({"knobs": {"agla": {"alpha": -1}}}, KnobError, "alpha"),
    ({"device": "cuda"}, DataError, "device is the server's own"),
    ({"dtype": "float16"}, DataError, "dtype is the server's own"),
    ({"server": "127.0.0.1:8000"}, KnobError, "no address of a server"),
    ({"server": "http://127.0.0.1:eighty/v1"}, KnobError, "no address of a server"),
    ({"server": "ftp://host/v1"}, KnobError, "no address of a server"),
    ({"server": "http://me:secret@host/v1"}, KnobError, "may hold no password"),
]


@pytest.mark.parametrize(("changes", "error", "told"), REFUSED, ids=[str(changes) for changes, _, _ in REFUSED])
def test_what_a_server_cannot_be_asked_is_refused_before_any_question(served, changes, error, told):
    with pytest.raises(error, match=told):
        server_run(replace(SMALL, **({"server": served.url} | changes)))


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_is_taken_however_it_ends(ending):
    assert Endpoint("http://host:8000" + ending).url == "http://host:8000/v1"
    assert Endpoint("https://host/some/path/").url == "https://host/some/path"


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"can't be reached.*Is the server running.*Nothing was asked"):
            server_run(SMALL, Endpoint(url, retries=0))


def test_a_web_page_is_no_endpoint(served):
    with pytest.raises(ServerError, match=r"404.*Nothing was asked"):
        server_run(SMALL, Endpoint(served.url.replace("/v1", "/other"), retries=0))


def test_a_wrong_key_is_told_at_once_and_a_right_one_works(pair, monkeypatch):
    with OpenAIEndpoint(pair, key="right") as locked:
        settings = replace(SMALL, server=locked.url, methods=("greedy",))
        began = time.monotonic()
        with pytest.raises(ServerError, match="wants a key, and OPENAI_API_KEY is not set"):
            server_run(settings)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(ServerError, match="refuses the key in OPENAI_API_KEY"):
            server_run(settings)
        assert time.monotonic() - began < 3, "a key does not get better by trying again"
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert [d.name for d in server_run(settings)[0]] == ["greedy"]
