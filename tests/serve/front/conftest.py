"""A front with stand-ins behind it, for every test of a session: its reading processes take a second to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from front_site import Site


@pytest.fixture(scope="session")
def one_site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def site(one_site: Site) -> Site:
    one_site.forget()
    return one_site


@pytest.fixture(scope="session")
def closed() -> Iterator[Site]:
    """A site for requests that must not reach what stands behind the front: nothing else is asked there."""
    with ExitStack() as stack:
        yield Site(stack)
