"""One server for every test of a session: it takes a minute to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real server of the embedded model (`served.Server`)."""
    import served

    running = served.Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def reference() -> Any:
    """What the transformers engine says (`reference.Reference`)."""
    import torch
    from reference import Reference

    torch.set_num_threads(1)
    return Reference()
