"""Knobs of methods that another package derives from ours are checked as ours are."""

from dataclasses import dataclass, field

import pytest

from lvlm_guard.engine import Single, limited
from lvlm_guard.errors import KnobError
from lvlm_guard.methods import AGLA


@dataclass(frozen=True)
class Mild(AGLA):
    """Defaults of its own."""

    alpha: float = 0.5
    share: float | None = 0.25


@dataclass(frozen=True)
class Doubled(Single):
    """A field that is no knob, and is made of one that is."""

    by: float = limited(2.0, "1 or more", lambda by: by >= 1)
    twice: float = field(init=False)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "twice", 2 * self.by)

    def assemble(self, step, branches):
        return step.logits


@pytest.mark.parametrize("knobs", [{"alpha": -1.0}, {"share": 2.0}, {"beta": 2.0}, {"frame": "x"}], ids=str)
def test_another_default_does_not_switch_a_check_off(knobs):
    assert Mild().alpha == 0.5
    with pytest.raises(KnobError, match=f"{next(iter(knobs))} is"):
        Mild(**knobs)


def test_a_none_that_the_original_takes_is_right_under_another_default():
    assert Mild(share=None).share is None


def test_a_field_without_a_check_may_be_set_afterwards():
    assert Doubled(3.0).twice == 6.0
    with pytest.raises(KnobError, match="by is 0"):
        Doubled(0)
