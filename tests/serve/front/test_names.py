"""A model's name says which guard is asked for, and never two."""

from __future__ import annotations

import pytest

from lvlm_guard.serve.errors import Refused, ServeError
from lvlm_guard.serve.front.names import Names

NAMES = Names(("llava", "other"), ("agla", "vote"))


def test_a_name_means_the_plain_model_or_one_guard() -> None:
    assert [NAMES.meant(name) for name in NAMES.all] == [
        ("llava", None), ("llava", "agla"), ("llava", "vote"),
        ("other", None), ("other", "agla"), ("other", "vote"),
    ]  # fmt: skip
    assert NAMES.meant(None) == ("llava", None)


@pytest.mark.parametrize("name", ["llava-vcd", "llava-", "LLAVA", "llava-agla-agla", "", 3, ["llava"], "x" * 100_000])
def test_another_name_is_not_found_and_never_the_plain_model(name: object) -> None:
    with pytest.raises(Refused) as refused:
        NAMES.meant(name)
    assert refused.value.status == 404
    assert len(refused.value.message) < 500


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(Refused, match="Did you mean 'llava-agla'"):
        NAMES.meant("llava-algla")


@pytest.mark.parametrize("plain", [(), ("llava", "llava"), ("llava", "llava-agla")])
def test_names_that_could_mean_two_things_are_refused_at_the_start(plain: tuple[str, ...]) -> None:
    with pytest.raises(ServeError):
        Names(plain, ("agla",))
