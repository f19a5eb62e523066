"""The command that makes a run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.validity import Allowed

_FLAGS = {"include": "include-path", "adapters": "adapter"}  # settings whose option has another name


def command(settings: Mapping[str, Any], allowed: Mapping[str, float] | None = None) -> str:
    """Return the command line of a run: what differs from the defaults, and what decides most in any case."""
    usual = Settings().to_dict()
    always = {"model", "methods", "tasks", "batch"}
    words = ["lvlm-guard", "eval", "run"]
    for name, value in settings.items():
        if name not in always and (value == usual.get(name) or list(_seq(value)) == list(_seq(usual.get(name)))):
            continue
        option = f"--{_FLAGS.get(name, name).replace('_', '-')}"
        if name in ("methods", "tasks"):
            words += [option, ",".join(value)]
        elif name in ("questions", "include", "adapters"):
            words += [word for one in value for word in (option, str(one))]
        elif name == "knobs":
            words += [w for m, own in value.items() for k, v in own.items() for w in ("--knob", f"{m}.{k}={_text(v)}")]
        elif name == "sweep":
            words += [w for k, values in value.items() for w in ("--sweep", f"{k}={','.join(map(_text, values))}")]
        elif name == "matchers":
            told = [f"{k}={v}" if k != v else k for k, values in value.items() for v in values]
            words += [word for one in told for word in ("--matcher", one)]
        elif name == "controls":
            words.append("--no-controls")
        elif value is not None:
            words += [option, str(value)]
    strict = asdict(Allowed())
    words += [w for k, v in (allowed or {}).items() if v != strict.get(k) for w in (f"--allow-{k}", f"{v:g}")]
    return shlex.join([*words, "--out", "DIR"])


def _seq(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
