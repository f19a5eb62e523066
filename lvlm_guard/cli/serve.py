"""`lvlm-guard serve`."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Annotated, Any

import typer

from lvlm_guard.cli.console import print_json, quiet_libraries, reporting, say
from lvlm_guard.cli.options import Json, Model
from lvlm_guard.errors import KnobError

serving = typer.Typer(add_completion=False, rich_markup_mode="rich")


def serve(
    context: typer.Context,
    model: Model = "embedded",
    guards: Annotated[
        str | None,
        typer.Option(
            help="Of agla, vcd, apc, vote [default: agla,vote where the model has a twin, else vote]; of verify, best "
            "before an --upstream [default: both].",
            show_default=False,
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint, whose answers are checked instead.", metavar="URL"),
    ] = None,
    upstream_concurrency: Annotated[int, typer.Option(min=1, help="Chats that it is asked at one time.")] = 64,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Plain name; guarded ones follow from it. Repeatable.", metavar="NAME")
    ] = None,
    maskd: Annotated[
        str | None, typer.Option(help="A matcher service that runs already.", metavar="URL", show_default=False)
    ] = None,
    matcher: Annotated[
        str | None, typer.Option(help="A registered matcher, a BLIP folder or hub id; default: the model's.")
    ] = None,
    maskd_workers: Annotated[int, typer.Option(min=1, help="Processes of the matcher service.")] = 1,
    maskd_device: Annotated[str, typer.Option(help="Its device: auto, cpu, cuda, cuda:1.")] = "auto",
    objects: Annotated[
        str | None, typer.Option(help="List of what captions may name. [default: COCO]", metavar="FILE")
    ] = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(help="Host that pictures may be fetched from. Repeatable.", metavar="HOST"),
    ] = None,
    most_pictures: Annotated[int, typer.Option(min=1, help="Pictures in one request.")] = 1,
    front_workers: Annotated[int, typer.Option(min=1, help="Processes that clients connect to.")] = 1,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="most_body=16777216, guarded_at_once=64, ...; docs/operator.md names all.", metavar="NAME=N"),
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Without CUDA graphs: slower, and simpler to start.")] = False,
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
    if upstream is not None:
        if getattr(context.get_parameter_source("model"), "name", "") == "COMMANDLINE":
            raise KnobError(
                "--upstream has its own models, so --model is not loaded: --served-model-name NAME names one."
            )
        import_module("lvlm_guard.serve.sockets").check_installed("Checking answers")
    settings = import_module("lvlm_guard.serve.launch.parts").ServeSettings(
        model=model,
        upstream=upstream,
        upstream_at_once=upstream_concurrency,
        guards=None if guards is None else tuple(_listed([guards])),
        host=host,
        port=port,
        names=tuple(_listed(served_model_name or ())),
        maskd=maskd,
        matcher=matcher,
        maskd_workers=maskd_workers,
        maskd_device=maskd_device,
        objects=objects,
        image_hosts=tuple(_listed(image_host or ())),
        most_pictures=most_pictures,
        front_workers=front_workers,
        limits=dict(one.partition("=")[::2] for one in limit or ()),
        eager=eager,
        passed=import_module("lvlm_guard.serve.launch.passed").Passed(context.args),
    )

    def ready(server: Any) -> None:
        if json:
            print_json("serve", [{**asdict(server), "model": upstream or model}])
        else:
            say(welcome(server))

    import_module("lvlm_guard.serve.launch.server").serve(settings, ready, say)


serving.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(reporting(serve))
"""What is not ours is vLLM's."""


def _listed(given: Any) -> list[str]:
    return [name.strip() for one in given for name in one.split(",") if name.strip()]


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
