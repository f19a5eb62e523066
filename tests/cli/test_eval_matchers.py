"""`lvlm-guard eval run --matcher` as a user types it: one row a matcher, and errors before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvlm_guard.adapters.loading import ADAPTERS

Run = Callable[..., Any]

SMALL = ("--limit", 2, "--captions", 3, "--seeds", 1, "--workers", 1, "--batch", 16)
DUAL = ADAPTERS / "dual-prompt"


@pytest.mark.slow
def test_each_matcher_has_a_row_and_a_difference_to_the_usual_one(run: Run, tmp_path: Path) -> None:
    matchers = ("--matcher", "blip-itm", "--matcher", f"mine={DUAL}", "--matcher", ADAPTERS / "ranker")
    told = ("eval", "run", *SMALL, "--methods", "vote", *matchers, "--tasks", "world_pope", "--out", tmp_path)
    made = run(*told)
    assert made.code == 0
    for name in ("vote, blip-itm", "vote, mine", "vote, ranker", "matcher, mine"):
        assert f" {name} " in made.out
    assert "vote, mine − vote, blip-itm on pope_adversarial" in made.out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "vote, ranker − vote, blip-itm" in page
    assert str(DUAL) in page
    again = run(*told, "--json")
    assert "are there already" in again.err
    assert again.object["settings"]["matchers"] == {
        "blip-itm": ["blip-itm"],
        "mine": [str(DUAL)],
        "ranker": [str(ADAPTERS / "ranker")],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--matcher", "dual-promt"), 2, "Did you mean 'dual-prompt'"),
        (("--matcher", "=x"), 2, "NAME=FOLDER"),
        (("--matcher", "mine=/none/there"), 1, "there is no folder '/none/there'"),
        (("--matcher", f"mine={ADAPTERS}"), 1, "holds no matcher"),
        (("--matcher", f"ranker={DUAL}"), 2, "is a 'dual-prompt' matcher"),
        (("--matcher", f"a={DUAL}", "--matcher", f"a={DUAL}"), 2, "given twice"),
        (("--matcher", f"a={DUAL}", "--matcher", f"b={DUAL}"), 2, "has the weights of a="),
        (("--matcher", "clip", "--methods", "vcd"), 2, "no method of this run (vcd) has a matcher"),
        (("--matcher", "clip", "--knob", "vote.matcher=clip"), 2, "by --knob and by --matcher"),
        (("--matcher", "clip", "--sweep", "lam=1,2", "--split", "val"), 2, "vote.matcher=clip"),
        (("--matcher", "clip", "--server", "http://127.0.0.1:9/v1", "--model", "m"), 1, "in this process"),
    ],
)
def test_what_can_not_be_matched_says_what_to_do(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    made = run("eval", "run", *SMALL, "--methods", "vote", "--out", tmp_path / "out", *arguments)
    assert (made.code, made.out) == (code, "")
    assert said in made.err.replace("\n", " ")
