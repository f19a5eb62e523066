"""What a user may say to `lvlm-guard serve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lvlm_guard.serve.launch.passed import Passed


@dataclass(frozen=True)
class ServeSettings:
    """How a server is started.

    Args:
        model: "embedded", a folder, or a hub id.
        upstream: address of an endpoint whose answers are checked; None: a model is served.
        upstream_at_once: chats that it is asked at one time.
        guards: methods to serve; None: agla and vote where the model has a twin, else vote; checks of an upstream.
        host: address to listen on.
        port: 0 for any free one.
        names: plain names of the model; (): how the user called it.
        maskd: URL of a matcher service that runs already; None: one is started.
        matcher: of the service that is started; None: the model's own.
        maskd_workers: processes of the service that is started.
        maskd_device: where its matcher runs: auto, cpu, cuda, cuda:1.
        objects: file of what free text may name; None: what the environment says, the embedded world's own objects
            for the embedded model, else COCO's 80.
        image_hosts: hosts that pictures may be fetched from.
        most_pictures: in one request.
        front_workers: processes of the front.
        limits: of requests, as `front.settings.limits_of` reads them.
        eager: leave CUDA graphs out.
        passed: vLLM's own options.
    """

    model: str = "embedded"
    upstream: str | None = None
    upstream_at_once: int = 64
    guards: tuple[str, ...] | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    maskd: str | None = None
    matcher: str | None = None
    maskd_workers: int = 1
    maskd_device: str = "auto"
    objects: str | None = None
    image_hosts: tuple[str, ...] = ()
    most_pictures: int = 1
    front_workers: int = 1
    limits: Mapping[str, str] = field(default_factory=dict)
    eager: bool = False
    passed: Passed = field(default_factory=lambda: Passed(()))
