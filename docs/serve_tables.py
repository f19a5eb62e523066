"""The tables of the operator's page: what a server costs, and what a soak found."""

from __future__ import annotations

from typing import Any

from machines import machine


def serve_table(result: dict[str, Any]) -> str:
    """Return the table of what a server costs: time of a request over an ordinary vLLM's, beside the cost model's."""
    rows = result["rows"]
    found = {(r["task"], r["concurrency"], r["server"], r["method"], r["metric"], r.get("against")): r for r in rows}
    work = list(dict.fromkeys(key[:2] for key in found))
    guards = [method for method in ("agla", "vote") if any(key[3] == method for key in found)]
    plain = "plain name, twin engine" if result["server"]["twin"] else "plain name, engine as it is"
    lines = [
        f"| requests | at once | ordinary vLLM: tokens/s; first token | {plain} | " + " | ".join(guards) + " |",
        "|---" * (4 + len(guards)) + "|",
    ]
    for task, at_once in work:
        speed = found[task, at_once, "plain", "greedy", "tokens_per_s", None]["value"]
        first = found[task, at_once, "plain", "greedy", "first_token_median_s", None]["value"]
        cells = [f"{task}s", str(at_once), f"{speed:.0f}; {1000 * first:.0f} ms"]
        for method in ("greedy", *guards):
            times = found[task, at_once, "guarded", method, "time_ratio", "plain"]
            later = found[task, at_once, "guarded", method, "first_token_ratio", "plain"]
            cells.append(
                f"**{times['value']:.2f}** [{times['low']:.2f}, {times['high']:.2f}], model {times['bound']:.2f}; "
                f"first token {later['value']:.2f}"
            )
        lines.append("| " + " | ".join(cells) + " |")
    counts = [r["n"] for r in rows]
    lines += [
        "",
        "Time of a request over the same request's at an ordinary vLLM beside it on the same two cores, interleaved; "
        f"new pictures each time, so that the matcher's work is in it. Medians of {rows[0]['blocks']} blocks, "
        f"{min(counts)} to {max(counts)} requests a cell, 95 % intervals; *model* is the cost model above with the "
        f"matcher's measured time; first token: median, over ordinary vLLM's. `python -m lvlm_guard.serve.measure"
        f"{'' if result['server']['twin'] else ' --guards vote'}` at 166b566 on {machine(result['environment'])}, vLLM "
        f"{result['server']['vllm']['guarded']}.",
    ]
    return "\n".join(lines)


def soak_table(result: dict[str, Any]) -> str:
    """Return what a soak found."""
    rows = result["rows"]
    told = {r["metric"]: r["value"] for r in rows if "method" not in r and "process" not in r}
    answers = sum(r["value"] for r in rows if r["metric"] == "answers")
    growth = {r["process"]: r["value"] for r in rows if r["metric"] == "memory_mib_per_min"}
    errors = ", ".join(f"{r['value']} of status {r['status']}" for r in rows if r["metric"] == "errors") or "none"
    grown = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
    return (
        f"Soak of {told['seconds']:.0f} s, guarded and plain requests with several knobs, streamed and not, some left "
        f"in the middle: {answers:,} answers, each compared with transformers' `generate()`: {told['wrong']} wrong, "
        f"{told['unguarded']} unguarded; errors: {errors}. Memory after the first two minutes, MiB a minute: {grown}. "
        f"`python -m lvlm_guard.serve.measure --soak 600` at 166b566 on {machine(result['environment'])}."
    )
