"""An endpoint, and what is said where it can't be asked."""

import sys

import pytest

from lvlm_guard.endpoint import Endpoint
from lvlm_guard.errors import KnobError, MissingExtraError


def test_a_client_that_is_not_installed_is_no_fault_of_the_servers(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-guard\[eval\]"):
        _ = Endpoint("http://127.0.0.1:9").served


def test_an_address_that_is_none_is_told_before_anything_is_asked():
    with pytest.raises(KnobError, match="no address"):
        _ = Endpoint("h:80").served
