"""How a server and its matcher service are started: the options of `lvlm-guard serve` and `lvlm-guard maskd`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from typer import Option

from lvlm_guard.cli.options import Device, Matcher, Model, Objects, Port
from lvlm_guard.cli.settings import COMMAS, Times
from lvlm_guard.serve.launch.passed import Passed

MIB = Times(1 << 20)
Names = tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """How much each worker of the matcher service takes on, in requests, seconds, bytes, pixels."""

    queue: Annotated[int, Option(min=1, help="Requests that wait; more are answered 503.")] = 64
    batch: Annotated[int, Option(min=1, help="Requests matched at once.")] = 16
    deadline: Annotated[float, Option(min=0.001, help="Seconds to an answer; later it is 503.")] = 10.0
    body: Annotated[int, MIB, Option("--max-body", min=1, help="MiB of one request.")] = 32 << 20
    held: Annotated[int, MIB, Option("--max-held", min=1, help="MiB of all requests in memory.")] = 256 << 20
    pixels: Annotated[int, Option("--max-pixels", min=1, help="Most pixels of a picture.")] = 128_000_000
    cache: Annotated[int, MIB, Option(min=1, help="MiB of remembered answers.")] = 64 << 20
    reading: float = 10.0  # seconds that a client may take to send a request
    failures: int = 5  # batches the matcher may fail one after another; then the process ends, to be started anew


@dataclass(frozen=True)
class MatcherSettings:
    """What a worker process needs to know; its matcher is as `load_matcher` takes it."""

    matcher: str = "blip-itm"
    workers: Annotated[int, Option(min=1, help="Processes, each with its own matcher and queue.")] = 1
    threads: Annotated[int | None, Option(min=1, help="CPU threads of each worker.")] = None
    objects: Objects = None
    device: Device = "auto"
    dtype: Annotated[str, Option(help="float32, bfloat16.")] = "float32"
    limits: Limits = field(default_factory=Limits)


_GUARDS = Option(
    help="Of agla, vcd, apc, vote [default: agla,vote where the model has a twin, else vote]; of verify, best before "
    "an --upstream [default: both].",
    show_default=False,
)
_NAMES = Option("--served-model-name", help="Plain name; guarded ones follow from it. Repeatable.", metavar="NAME")
_HOSTS = Option("--image-host", help="Host that pictures may be fetched from. Repeatable.", metavar="HOST")
_UPSTREAM = Option(help="An OpenAI-compatible endpoint, whose answers are checked instead.", metavar="URL")
_CHATS = Option("--upstream-concurrency", min=1, help="Chats that it is asked at one time.")
_MASKD = Option(help="A matcher service that runs already.", metavar="URL", show_default=False)


@dataclass(frozen=True)
class ServeSettings:
    """How a server is started; `limits` are what `front.settings.limits_of` reads, `passed` vLLM's own options."""

    model: Model = "embedded"
    guards: Annotated[Names | None, COMMAS, _GUARDS] = None
    upstream: Annotated[str | None, _UPSTREAM] = None
    upstream_at_once: Annotated[int, _CHATS] = 64
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Port = 8000
    names: Annotated[Names, COMMAS, _NAMES] = ()
    maskd: Annotated[str | None, _MASKD] = None
    matcher: Matcher = None
    maskd_workers: Annotated[int, Option(min=1, help="Processes of the matcher service.")] = 1
    maskd_device: Annotated[str, Option(help="Its device: auto, cpu, cuda, cuda:1.")] = "auto"
    objects: Objects = None
    image_hosts: Annotated[Names, COMMAS, _HOSTS] = ()
    most_pictures: Annotated[int, Option(min=1, help="Pictures in one request.")] = 1
    front_workers: Annotated[int, Option(min=1, help="Processes that clients connect to.")] = 1
    limits: Mapping[str, str] = field(default_factory=dict)
    eager: Annotated[bool, Option("--eager", help="Without CUDA graphs: slower, and simpler to start.")] = False
    passed: Passed = field(default_factory=lambda: Passed(()))
