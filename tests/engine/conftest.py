"""A tiny guarded LLaVA for the tests of the engine."""

from typing import Any

import pytest
import tiny
from asking import agla

from lvlm_guard import guard


@pytest.fixture
def pair() -> tuple[Any, Any]:
    return guard(*tiny.make("llava", scale=5.0), agla())
