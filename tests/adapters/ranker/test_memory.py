"""The pair head's memory, in processes of its own: linear in pictures where the published form is quadratic."""

from __future__ import annotations

import pytest

from embedded_training.memory import WORK, alone, main, published


def test_the_published_form_holds_what_the_specification_says() -> None:
    keys, attention = published(64, 100, 768)
    assert keys / 1e9 == pytest.approx(2.5, abs=0.05)
    assert attention / 1e9 == pytest.approx(0.42, abs=0.005)


@pytest.mark.slow
def test_attention_takes_memory_in_proportion_to_the_pictures_and_far_less_than_the_published_form() -> None:
    few, many = (alone("attention", pictures, 100, 256) for pictures in (128, 512))
    assert 3 < many / few < 4.6
    assert many * 2**20 < 0.02 * sum(published(512, 100, 256))


@pytest.mark.slow
def test_the_command_tells_what_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--pictures", "16", "--tokens", "64", "--width", "64", "--work", *WORK]
    assert main(given) == 0
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert len(cells) == 4 + len(WORK)
    assert cells[0] == "16"
    assert float(cells[-2]) == pytest.approx(16**2 * 2 * 64 * 64 * 4 / 2**20, abs=0.5)
