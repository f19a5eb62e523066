"""Exit codes, JSON, progress and Ctrl-C, without any model."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from lvlm_guard.cli.console import environment, print_object, reporting
from lvlm_guard.cli.options import method_of
from lvlm_guard.errors import GuardError, ImageError, KnobError, UnknownNameError
from lvlm_guard.progress import progress


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageError("no [bold]such[/] picture"), 1),
        (KnobError("alpha"), 2),
        (UnknownNameError("agle"), 2),
        (GuardError("x"), 1),
        (OSError(28, "No space left on device"), 1),
        (MemoryError(), 1),
        (ZeroDivisionError("a fault"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_a_message_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        reporting(fails)()
    assert stopped.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    if isinstance(error, ImageError):
        assert "no [bold]such[/] picture" in printed.err  # a user's text is no markup of ours


def test_a_traceback_is_shown_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVLM_GUARD_DEBUG", "1")

    def fails() -> None:
        raise ImageError("x")

    with pytest.raises(typer.Exit):
        reporting(fails)()
    assert "Traceback" in capsys.readouterr().err


def test_json_has_no_nan_and_any_key(capsys: pytest.CaptureFixture[str]) -> None:
    print_object({"a": math.nan, "b": [1.5, math.inf, "é"], 3: (None, True)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None, "é"], "3": [None, True]}


def test_the_environment_names_versions_and_cores() -> None:
    made = environment("cpu")
    assert made["cores"] >= 1
    assert made["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.dumps(made)


def test_progress_without_a_terminal_is_a_line_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("answers", 40) as advance:
        for _ in range(40):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("answers: 4 of 40")


def test_a_combination_takes_the_knobs_of_each_of_its_methods() -> None:
    both = method_of("agla+rudder", ["agla.alpha=1.5", "agla.beta=0.2"])
    assert (both.name, both.parts[0].alpha, both.parts[0].beta) == ("agla+rudder", 1.5, 0.2)
    assert method_of("agla", ["agla.alpha=1.5"]) == method_of("agla", ["alpha=1.5"])
    for knob, said in (("alpha=1", "agla.alpha=1"), ("vcd.alpha=1", "none of agla, rudder")):
        with pytest.raises(typer.BadParameter, match=said):
            method_of("agla+rudder", [knob])
    with pytest.raises(KnobError, match="both assemble logits"):
        method_of("agla+vcd", None)


@pytest.mark.parametrize(("name", "reason"), [("opera", "takes tokens back"), ("kvsmooth", "leaves open")])
def test_a_method_that_cannot_be_had_says_why(name: str, reason: str) -> None:
    with pytest.raises(UnknownNameError, match=reason):
        method_of(name, None)


def test_knobs_are_read_as_the_type_of_their_default() -> None:
    made = method_of("agla", ["alpha=1", "frame=original", "matcher=none", "beta=.25"])
    assert (made.alpha, made.frame, made.matcher, made.beta) == (1.0, "original", None, 0.25)
    assert method_of("agla", ["matcher=my/blip"]).matcher == "my/blip"
    assert method_of("vcd", ["seed=3"]).seed == 3


LACKING = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
from lvlm_guard.cli import main
main({arguments!r})
"""


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [(["eval", "check", "."], "pyarrow", "eval"), (["bench", "--server", "http://x"], "prometheus_client", "check")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    arguments: list[str], package: str, extra: str
) -> None:
    code = LACKING.format(package=package, arguments=arguments)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert (
        f"Missing extra: This needs {package}, which is not installed: pip install 'lvlm-guard[{extra}]'" in ran.stderr
    )
    assert "fault of lvlm-guard" not in ran.stderr


@pytest.mark.slow
def test_ctrl_c_stops_a_long_run_with_a_word_and_code_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lvlm_guard", "bench", "--blocks", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    assert "Measuring" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in err
    assert "Traceback" not in out + err
