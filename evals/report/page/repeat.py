"""What a reader needs to repeat a run: the command, settings, decoders, versions and digests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import trainings
from lvlm_guard.report import Html, tag

Run = Mapping[str, Any]

_FLAGS = {"include": "include-path", "adapters": "adapter"}  # settings whose option has another name


def command(settings: Mapping[str, Any], flags: list[str] | None = None) -> str:
    """Return the command line of a run: what differs from the defaults, and what decides most in any case.

    Args:
        settings: as in `run.json`.
        flags: the run's flags; those that allow empty or cut answers are options too.
    """
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
    for flag in flags or ():
        if flag.startswith("--allow-"):
            words += flag.partition(":")[0].split()
    return shlex.join([*words, "--out", "DIR"])


def _seq(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def repeat(run: Run) -> list[Html]:
    """Return the parts of the last section."""
    settings = run["settings"]
    environment = run.get("environment", {})
    digests = {
        "code": run.get("code", ""),
        "weights": run.get("weights", ""),
        **{f"questions of {task['name']}": task.get("digest", "") for task in run["tasks"]},
    }
    times = run.get("times", {})
    asked = {"started": times.get("started", ""), "seconds": times.get("seconds", "")}
    return [
        tag("p", tag("code", command(settings, list(run.get("flags", ()))), class_="command")),
        tag("h3", "Tasks"),
        *(_task(task) for task in run["tasks"]),
        tag("h3", "Decoders"),
        tag("ul", *(_decoder(decoder) for decoder in run["decoders"])),
        tag("h3", "Settings"),
        facts({name: _plain(value) for name, value in settings.items()}),
        tag("h3", "Versions and digests"),
        facts({"lvlm-guard": run.get("version", ""), **environment, **digests, **asked}),
    ]


def facts(pairs: Mapping[str, Any]) -> Html:
    """Return names with their values; empty ones are left out."""
    shown = [(name, value) for name, value in pairs.items() if value not in ("", None)]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", str(value))) for name, value in shown), class_="facts")


def _task(task: Mapping[str, Any]) -> Html:
    told = {
        "items": f"{task['n']} on {task['pictures']} pictures, {task['split']} split",
        "longest answer": f"{task['max_new_tokens']} tokens",
        **{name: _plain(value) for name, value in task.get("about", {}).items()},
    }
    return tag("div", tag("p", tag("b", task["name"])), facts(told))


def _decoder(decoder: Mapping[str, Any]) -> Html:
    knobs = {
        name: value for name, value in decoder["knobs"].items() if value is not None and not isinstance(value, list)
    }
    told = [decoder["about"]]
    if knobs:
        told.append(", ".join(f"{name} {value}" for name, value in knobs.items()))
    if decoder["seeds"] > 1:
        told.append(f"{decoder['seeds']} {'trainings' if trainings(decoder) > 1 else 'runs'}, averaged")
    if decoder.get("matcher"):
        told.append(f"matched by {', '.join(decoder['matchers'])}")
    if decoder.get("control_of"):
        told.append(f"a control of {decoder['control_of']}")
    return tag("li", tag("b", decoder["name"]), f": {'; '.join(told)}")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return str(value)
