"""The tables of the trainer's page: adapters beside their baselines, in the guard, as verifiers, and distilled."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from machines import machine

METRICS = {
    "i2t_r1": "picture to caption, R@1 among all captions and their swaps",
    "t2i_r1": "caption to picture, R@1",
    "swap_auroc": "true captions against swaps, AUROC",
    "swap_auroc_colour": "of these, swapped colours",
    "swap_auroc_exchange": "of these, colours exchanged between two objects",
    "claims_auroc": '"a photo of a dog", true against false, AUROC',
    "srcc": "order (SRCC)",
    "mae": "count off by (MAE, less is better)",
    "accuracy": "count right",
    "absence_auroc": "none against some, AUROC",
}
CAPTIONS = {
    ("chair", "chair_i"): "CHAIR_i (less is better)",
    ("chair", "object_recall"): "object recall",
}
IN_THE_GUARD = {
    ("pope_all", "accuracy"): "POPE all, accuracy",
    ("pope_all", "auroc"): "AUROC",
    **CAPTIONS,
}
DISTILLED = {
    ("pope_all", "accuracy"): "POPE all, accuracy",
    ("pope_adversarial", "accuracy"): "POPE adversarial",
    **CAPTIONS,
    ("chair", "repeats"): "objects named again",
}
CLAIMS = {
    ("retrieval", "verifier_auroc"): "claims told apart, AUROC",
    ("retrieval", "brier"): "Brier score (less is better)",
    ("retrieval", "claims_auroc_base"): "of objects trained on",
    ("retrieval", "claims_auroc_novel"): "of others",
    ("retrieval", "swap_auroc"): "swaps, AUROC",
    ("retrieval", "i2t_r1"): "picture to caption, R@1",
    ("retrieval", "t2i_r1"): "caption to picture, R@1",
    ("retrieval_real", "verifier_auroc"): "claims on photographs' textures, AUROC",
}
"""(task, metric) of `train claims --compare` -> the column."""
KINDS = ("category", "colour", "number", "exchange")
FEW = 5
"""Below so many trainings a bootstrap's interval covers less than it says."""
TRAINING = ("kept", "parameters", "seconds")
Row = dict[str, Any]


def adapter_table(result: dict[str, Any]) -> str:
    """Return the table of an adapter's comparison, and its differences to each baseline."""
    own = result["method"]
    found = {(r["method"], r["metric"]): r for r in result["rows"]}
    methods = [method for method in dict.fromkeys(method for method, _ in found) if _is_one(method, own)]
    lines = _table("", *methods)
    for metric, about in METRICS.items():
        if (methods[0], metric) in found:
            values = (found.get((method, metric)) for method in methods)
            lines.append(_line(about, *map(_value, values)))
        less = [found.get((f"{own}-{method}", metric)) for method in methods]
        if any(less):
            cells = ("" if cell is None else _difference(cell, len(result["seeds"])) for cell in less)
            lines.append(_line(f"… {own} less that", *cells))
    lines += [
        "",
        f"{_call(result)}: {len(result['seeds'])} trainings each, "
        f"n = {result['rows'][0]['n']} held-out pictures, intervals by bootstrap over pictures and trainings; of three "
        f"trainings they cover about 85 %, so nothing is bold; on {machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def guard_table(result: dict[str, Any]) -> str:
    """Return the table of methods with each of several matchers, from `eval run --matcher`."""
    found = _by_task(result)
    settings = result["settings"]
    names = [d["name"] for d in result["decoders"] if d["role"] in ("reference", "plain") or d["matcher"]]
    lines = _table("", *IN_THE_GUARD.values())
    for name in names:
        cells = []
        for task, metric in IN_THE_GUARD:
            less = found.get((f"{name}-greedy", task, metric))
            text = _value(found.get((name, task, metric)))
            cells.append(text if less is None else f"{text}; {_difference(less)}")
        lines.append(_line(name, *cells))
    given = " ".join(f"--matcher {name} (×{len(places)})" for name, places in settings["matchers"].items())
    lines += [
        "",
        f"`lvlm-guard eval run --methods {','.join(settings['methods'])} {given}`: after the semicolon the difference "
        f"to greedy, bold where its interval excludes zero; ×3: three trainings; {settings['seeds']} run(s) of what is "
        f"sampled; 95 % intervals by bootstrap over pictures and trainings; {_sizes(found)}, "
        f"on {machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result of `eval run` without the rows that no table shows, which are most of it."""
    wanted = {metric for _, metric in IN_THE_GUARD}
    return result | {"rows": [row for row in result["rows"] if row["metric"] in wanted]}


def verify_table(result: dict[str, Any]) -> str:
    """Return the table of verifiers, from `eval verify`."""
    found = {(r["decoder"], r["baseline"], r["metric"]): r for r in result["rows"]}
    methods = [one["name"] for one in result["verifiers"]]
    lines = _table("verifier", "AUROC", "less calibrated CLIP", "Brier score (less is better)")
    for method in sorted(methods, key=lambda name: -found[name, None, "auroc"]["value"]):
        less = found.get((method, "calibrated-clip", "auroc"))
        cells = [_value(found[method, None, "auroc"]), "" if less is None else _difference(less)]
        lines.append(_line(method, *cells, _value(found.get((method, None, "brier")))))
    counts = result["counts"]
    lines += [
        "",
        f"{_call(result)}: {counts['mentions']} objects named in {counts['pictures']} descriptions, of which "
        f"{counts['hallucinated']} are not there; 95 % intervals by bootstrap over pictures and trainings, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def distilled_table(result: dict[str, Any]) -> str:
    """Return the table of the distilled model between the plain and the guarded one."""
    found = _by_task(result)
    guarded = result["lessons"]["method"]
    lines = _table("", "plain", "distilled, plain greedy", "difference", "the teacher")
    for (task, metric), about in DISTILLED.items():
        cells = [_value(found.get((method, task, metric))) for method in ("greedy", "distilled", guarded)]
        cells.insert(2, _difference(found["distilled-greedy", task, metric], len(result["seeds"])))
        lines.append(_line(about, *cells))
    for task in ("question", "caption"):
        changed, kl = (found.get(("distilled", f"untouched_{task}", metric)) for metric in ("changed", "kl"))
        if changed is not None and kl is not None:
            about = f"{task}s that the guard left alone, n = {changed['n']}: changed; nats"
            lines.append(_line(about, "", f"{_value(changed)}; {_value(kl)}", "", ""))
    lines += [
        "",
        f"{_call(result)}: {len(result['seeds'])} trainings on {result['answers']['train']['answers']} answers about "
        f"{result['answers']['train']['pictures']} pictures, {result['recipe']['steps']} steps; "
        f"{_sizes(found)}, held out; intervals by bootstrap over pictures and trainings (what the guard left alone: "
        "over pictures); of three trainings they cover about 85 %, so nothing is bold; on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def claims_table(result: dict[str, Any]) -> str:
    """Return the table of published works that judge claims, from `train claims --compare`, the best verifier first.

    Works of which no training was kept are CLIP as it is, and are named beneath.
    """
    found = {(r["method"], r["task"], r["metric"]): r for r in result["rows"]}
    methods = dict.fromkeys(r["method"] for r in result["rows"] if not r.get("baseline"))
    first = next(iter(CLAIMS))
    kept = {name: found[name, "training", "kept"]["value"] for name in methods if (name, "training", "kept") in found}
    never = [name for name, share in kept.items() if share == 0 and name != "clip"]
    ranked = sorted((name for name in methods if name not in never), key=lambda name: -found[name, *first]["value"])
    lines = _table("", *CLAIMS.values(), f"swaps of {', '.join(KINDS)}", "kept", "parameters", "seconds")
    for name in ranked:
        cells = []
        for task, metric in CLAIMS:
            less = found.get((f"{name}-clip", task, metric))
            value = found.get((name, task, metric))
            cells.append(
                _value(value)
                if value is None or less is None
                else f"{value['value']:.3f}; {_difference(less, len(result['seeds']))}"
            )
        kinds = [found.get((name, "retrieval", f"swap_auroc_{kind}")) for kind in KINDS]
        told = [found.get((name, "training", metric)) for metric in TRAINING]
        lines.append(
            _line(
                f"`{name}`" if name in kept else name,
                *cells,
                "–" if kinds[0] is None else ", ".join(f"{kind['value']:.3f}" for kind in kinds if kind is not None),
                *(
                    "–" if cell is None else f"{cell['value']:,.{digits}f}"
                    for cell, digits in zip(told, (2, 0, 0), strict=True)
                ),
            )
        )
    n, trainings = found["clip", *first]["n"], len(result["seeds"])
    bold = "bold where they exclude zero" if trainings >= FEW else "of three they cover about 85 %, so nothing is bold"
    none = f"Of these none was kept, so that their rows would be CLIP's: {', '.join(never)}. " if never else ""
    lines += [
        "",
        f"{'; '.join(f'`{call}`' for call in result['calls'])}: {trainings} trainings each, n = {n} "
        "held-out pictures of each kind. After a value its difference to CLIP as it is, with 95 % intervals by "
        f"bootstrap over pictures and trainings; {bold}. Kept: "
        "the share of trainings that were better than CLIP as it is on validation; in the others the figures are "
        f"CLIP's. {none}The linear probe reads no text. On "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def claims_shown(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the table shows of calls of `train claims --compare` on the same data; a later call's rows win."""
    wanted = {
        *CLAIMS,
        *(("retrieval", f"swap_auroc_{kind}") for kind in KINDS),
        *(("training", one) for one in TRAINING),
    }
    rows = {
        (r["method"], r["task"], r["metric"]): r
        for result in results
        for r in result["rows"]
        if (r["task"], r["metric"]) in wanted and r.get("baseline") in (None, "clip")
    }
    calls = [re.sub(r" --(out|json)( [^ -]\S*)?", "", result["call"]) for result in results]
    return {key: results[-1][key] for key in ("command", "version", "environment", "seeds", "withheld")} | {
        "calls": calls,
        "rows": list(rows.values()),
        "validation": {
            name: [kept["figures"] for kept in result["kept"][number * len(result["seeds"]) :][: len(result["seeds"])]]
            for result in results
            for number, name in enumerate(result["presets"])
        },
    }


def loop_table(result: dict[str, Any]) -> str:
    """Return the table of what the training loop costs beside a bare one."""
    lines = _table("time of", "loop / bare loop", "samples/s of both")
    for cell in result["rows"]:
        rates = f"{cell['samples_per_second']:.0f}, {cell['bare_samples_per_second']:.0f}"
        lines.append(_line(cell["clock"], f"{_value(cell)}, n = {cell['n']} pairs of blocks", rates))
    asked = result["settings"]
    lines += [
        "",
        f"`OMP_NUM_THREADS=1 {result['command']}`: a ranker of width {asked['width']}, {asked['steps']} steps a block "
        f"with saved states, beginning and end included, batches of {asked['batch']}; medians with 95 % intervals, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def _table(*titles: str) -> list[str]:
    """The head of a table."""
    return [_line(*titles), "|---" * len(titles) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _by_task(result: dict[str, Any]) -> dict[tuple[str, str, str], Row]:
    """Rows by decoder ("a-b" for a difference), task and metric."""

    def named(row: Row) -> str:
        return f"{row['method']}-{row['baseline']}" if row.get("baseline") else str(row["method"])

    return {(named(r), r["task"], r["metric"]): r for r in result["rows"]}


def _sizes(found: dict[tuple[str, str, str], Row]) -> str:
    """How much was asked on the embedded world."""
    questions, captions = (found["greedy", *key]["n"] for key in (("pope_all", "accuracy"), ("chair", "chair_i")))
    return f"n = {questions} questions and {captions} captions"


def _call(result: dict[str, Any]) -> str:
    """The command, without its folder."""
    return f"`{re.sub(r' --out [^ ]+', '', result['call'])}`"


def _is_one(method: str, own: str) -> bool:
    """Whether a row's method is one, and not the difference of two ("ranker-clip")."""
    return method == own or not method.startswith(f"{own}-")


def _value(cell: Row | None) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    ends = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{cell['value']:.3f}{ends}"


def _difference(cell: Row, trainings: int = 0) -> str:
    """Write a difference: bold as its row says, or where its interval excludes zero and trainings are not too few."""
    text = f"{cell['value']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]".replace("-", "−")
    told = cell["low"] > 0 or cell["high"] < 0
    return f"**{text}**" if cell.get("bold", told and not 0 < trainings < FEW) else text


if __name__ == "__main__":
    if sys.argv[1:]:
        json.dump(claims_shown([json.loads(Path(name).read_text()) for name in sys.argv[1:]]), sys.stdout)
    else:
        json.dump(shown(json.load(sys.stdin)), sys.stdout)
