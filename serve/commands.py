"""`lvlm-guard serve` and `lvlm-guard maskd`; what they stand on is loaded by name, so that `--help` is quick."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer

from lvlm_guard.cli.console import print_json, quiet_libraries, reporting, say
from lvlm_guard.cli.options import Json, Matcher, Model, Port
from lvlm_guard.errors import KnobError
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.settings import Limits, MatcherSettings, ServeSettings


def serve(
    context: typer.Context,
    settings: partial[ServeSettings],
    limit: Annotated[
        list[str] | None,
        typer.Option(help="most_body=16777216, guarded_at_once=64, ...; docs/operator.md names all.", metavar="NAME=N"),
    ] = None,
    json: Json = False,
) -> None:
    """Serve a model and its guards behind an OpenAI-compatible endpoint, on vLLM.

    Clients choose by model name: NAME is the plain model, NAME-agla and NAME-vote are guarded. Starts vLLM and
    the matcher service, asks questions that show that the guards act, and only then opens the guarded names.
    Every other option is vLLM's: --tensor-parallel-size 2, --max-model-len 4096, ...

    With --upstream https://HOST/v1 no model is started, and nothing can be guarded: NAME passes through, NAME-verify
    says which objects in an answer the picture supports, NAME-best is the best of several answers. The endpoint's key
    is read from LVLM_GUARD_UPSTREAM_KEY.

    The API key is read from VLLM_API_KEY alone: --api-key would be seen by every user of the machine.
    agla, vcd and apc need a twin engine, which doubles each step and the KV cache; --guards vote does not.
    With --json one object is printed when the server is open.

    [bold]Example:[/bold] lvlm-guard serve --model llava-hf/llava-1.5-7b-hf --max-model-len 4096
    """
    quiet_libraries()
    asked = settings(limits=dict(one.partition("=")[::2] for one in limit or ()), passed=Passed(context.args))
    if asked.upstream is not None:
        if getattr(context.get_parameter_source("model"), "name", "") == "COMMANDLINE":
            raise KnobError(
                "--upstream has its own models, so --model is not loaded: --served-model-name NAME names one."
            )
        import_module("lvlm_guard.serve.sockets").check_installed("Checking answers")

    def ready(server: Any) -> None:
        if json:
            print_json("serve", [{**asdict(server), "model": asked.upstream or asked.model}])
        else:
            say(welcome(server))

    import_module("lvlm_guard.serve.launch.server").serve(asked, ready, say)


serving = typer.Typer(add_completion=False, rich_markup_mode="rich")  # what is not ours is vLLM's:
serving.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(reporting(serve))


def welcome(server: Any) -> str:
    """Return what is said of a server that is open (`lvlm_guard.serve.launch.parts.Ready`), with an example."""
    from lvlm_guard.proof import CHECKS

    guarded = next(name for name in server.names if name.endswith("-" + server.guards[0]))
    act = "checks {} are there" if set(server.guards) <= set(CHECKS) else "guards {} act"
    return (
        f"The {act.format(', '.join(server.guards))}. Models at {server.url}/v1: {', '.join(server.names)}. "
        "Ctrl-C stops all of it. Try it:\n\n"
        "from base64 import b64encode\n"
        "from openai import OpenAI\n\n"
        'picture = "data:image/png;base64," + b64encode(open("PICTURE.png", "rb").read()).decode()\n'
        f'answer = OpenAI(base_url="{server.url}/v1", api_key="KEY").chat.completions.create(\n'
        f'    model="{guarded}",\n'
        '    messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}},\n'
        '                                           {"type": "text", "text": "Is there a dog in the image?"}]}],\n'
        ")\n"
        "print(answer.choices[0].message.content, answer.lvlm_guard)\n"
    )


def maskd(
    settings: partial[MatcherSettings],
    limits: Limits,
    model: Model = "embedded",
    matcher: Matcher = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no password.")] = "127.0.0.1",
    port: Port = 8201,
    json: Json = False,
) -> None:
    """Serve masks for AGLA and scores for vote, from one matcher that several servers may share.

    POST /mask and /scores, GET /health and /metrics. --model says whose matcher: the embedded one's own, else
    BLIP-ITM large. With --json one object is printed when the service is ready.

    [bold]Example:[/bold] lvlm-guard maskd --model llava-hf/llava-1.5-7b-hf --port 8201
    """
    quiet_libraries()
    asked = settings(matcher=matcher or ("embedded" if model == "embedded" else "blip-itm"), limits=limits)

    def ready(url: str, version: str) -> None:
        if json:
            print_json("maskd", [{"url": url, "matcher": version, "workers": asked.workers, "pid": os.getpid()}])
        else:
            say(f"The matcher {version} answers at {url} (/mask, /scores, /health, /metrics). Ctrl-C stops it.")

    import_module("lvlm_guard.serve.maskd.run").maskd(asked, host, port, ready)
