"""`lvlm-guard eval verify` as a user types it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

SMALL = ("--limit", 8, "--matcher", "clip")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


def test_verify_prints_its_table_and_writes_its_files_and_goes_on_from_them(run: Run, out: Path) -> None:
    made = run("eval", "verify", *SMALL, "--out", out)
    assert made.code == 0
    for name in ("calibrated-clip", "clip-sentence", "f-clipscore", "token-probability", "blip-itm", "clip "):
        assert f" {name}" in made.out
    assert "AUROC: clip " in made.out
    for name in ("report.json", "answers.parquet"):
        assert (out / name).stat().st_size > 0
    again = run("eval", "verify", *SMALL, "--out", out, "--json")
    assert "descriptions: All answers are there already" in again.err
    assert again.object["command"] == "eval verify"
    assert {row["metric"] for row in again.object["rows"]} >= {"auroc", "brier", "calibration_error", "marked"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--matcher", "dual-promt"), 2, "Did you mean 'dual-prompt'"),
        (("--matcher", "mine="), 2, "NAME=FOLDER"),
        (("--matcher", "a b=clip"), 2, "NAME=FOLDER"),
        (("--matcher", "clip", "--matcher", "clip"), 2, "given twice"),
        (("--matcher", "mine=/none/there"), 1, "/none/there"),
        (("--matcher", "calibrated-clip=clip"), 1, "name of a baseline"),
        (("--clip", "blip-itm"), 1, "give the folder or hub id of a CLIP"),
        (("--task", "world_pope"), 1, "not one task of captions"),
        (("--task", "world_cher"), 2, "Did you mean 'world_chair'"),
        (("--task", "chair"), 1, "--images"),
        (("--max-new-tokens", 2), 1, "No description names an object"),
    ],
)
def test_what_can_not_be_verified_says_what_to_do(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], code: int, said: str
) -> None:
    made = run("eval", "verify", "--limit", 2, "--out", tmp_path, *arguments)
    assert (made.code, made.out) == (code, "")
    assert said in " ".join(made.err.replace("│", " ").split())


def test_a_folder_that_holds_no_matcher_is_told_from_one_that_does(run: Run, tmp_path: Path) -> None:
    (tmp_path / "seeds" / "seed-0").mkdir(parents=True)
    made = run("eval", "verify", "--limit", 2, "--out", tmp_path / "out", "--matcher", f"mine={tmp_path / 'seeds'}")
    assert made.code == 1
    assert "holds no matcher" in made.err
    assert "seed-N" in made.err


def test_ctrl_c_keeps_what_it_has_and_exits_as_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm_guard.evals.studies import verify as room

    plain = room.describe

    def stopped(*arguments: Any) -> Any:
        if list(tmp_path.glob("descriptions/answers/*")) and described:
            raise KeyboardInterrupt
        described.append(arguments[-1])
        return plain(*arguments)

    described: list[Any] = []
    monkeypatch.setattr(room, "describe", stopped)
    made = run("eval", "verify", "--limit", 4, "--batch", 2, "--matcher", "clip", "--out", tmp_path)
    assert made.code == 130
    assert "the same command goes on from there" in made.err
    assert len((tmp_path / "descriptions" / "answers" / "rank-0.jsonl").read_text().splitlines()) == 2
