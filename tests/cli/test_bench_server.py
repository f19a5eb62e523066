"""What `lvlm-guard bench --server` refuses; what it measures is tested with vLLM, whose benchmark it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--server", "http://127.0.0.1:9", "--batches", "2"], 2, "--batches is not for --server"),
        (["--server", "http://127.0.0.1:9", "--device", "cpu"], 2, "--device is not for --server"),
        (["--server", "http://127.0.0.1:9", "--concurrency", "1,none"], 2, "whole numbers"),
        (["--server", "http://127.0.0.1:9"], 1, "Nothing that serves models answers"),
        (["--server", "nonsense"], 1, "Nothing that serves models answers"),
        (["--tokenizer", "x"], 2, "--tokenizer is only for --server"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(run: Run, arguments: list[str], code: int, message: str) -> None:
    made = run("bench", *arguments)
    assert made.code == code
    assert message in " ".join(made.err.replace("│", " ").split())
