"""The tables of the operator's page: what a server costs, what a soak found, and what kills cost."""

from __future__ import annotations

from statistics import median
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
    told = {r["metric"]: r["value"] for r in rows if not {"method", "process", "kind", "when"} & set(r)}
    answers = sum(r["value"] for r in rows if r["metric"] == "answers")
    growth = {r["process"]: r["value"] for r in rows if r["metric"] == "memory_mib_per_min"}
    errors = ", ".join(f"{r['value']} of status {r['status']}" for r in rows if r["metric"] == "errors") or "none"
    grown = ", ".join(f"{name} {value:+.1f}" for name, value in growth.items())
    found = (
        f"{answers:,} answers, each compared with transformers' `generate()`: {told['wrong']} wrong, "
        f"{told['unguarded']} unguarded; errors: {errors}. Memory after the first two minutes, MiB a minute: {grown}. "
    )
    asked = "guarded and plain requests with several knobs, streamed and not, some left in the middle"
    if "attacked_s" not in told:
        return (
            f"Soak of {told['seconds']:.0f} s, {asked}: {found}`python -m lvlm_guard.serve.measure --soak 600` at "
            f"166b566 on {machine(result['environment'])}."
        )
    attacks = ", ".join(f"{r['kind']} {r['value']:,} ×" for r in rows if r["metric"] == "attacks")
    slow = {(r["method"], r["attacked"]): r for r in rows if r["metric"] == "p99_s"}
    times = []
    for method in ("plain", "agla", "vote"):
        if (method, True) in slow and (method, False) in slow:
            with_them, without = slow[method, True], slow[method, False]
            times.append(
                f"{method} {with_them['value']:.2f} s (n = {with_them['n']:,}) against {without['value']:.2f} s "
                f"(n = {without['n']:,}), **{with_them['value'] / without['value']:.2f}** ×"
            )
    return (
        f"Soak of {told['seconds']:.0f} s, {told['attacked_s']:.0f} of them under attack, a minute in one and a half: "
        f"{asked}: {found}Attacks: {attacks}; {told['attacks_through']} got through. The 99th percentile of answers' "
        f"times with and without attacks: {'; '.join(times)}. `make soak` on {machine(result['environment'])}."
    )


KILLED = {
    "front": ("front", "`serve`"),
    "readers": ("what reads requests", "the front"),
    "maskd": ("matcher service", "`serve`"),
    "keeper": ("keeper, which ends the rest should `serve` be killed", "`serve`"),
    "API server": ("vLLM's API server", "your supervisor: `serve` has ended all and exited"),
    "engine core": ("vLLM's engine core", "your supervisor, likewise"),
    "serve": ("`serve` itself", "your supervisor; the keeper has ended all"),
}


def kills_table(result: dict[str, Any]) -> str:
    """Return how long names were away after each process was killed."""
    rows = result["rows"]
    lines = ["| killed | times | back by | median | worst | errors meanwhile |", "|---|---|---|---|---|---|"]
    for role, (name, who) in KILLED.items():
        mine = [row for row in rows if row["process"] == role]
        if not mine:
            continue
        seconds = sorted(row["recovered_s"] for row in mine)
        errors: dict[str, int] = {}
        for row in mine:
            for status, count in row["errors"].items():
                errors[status] = errors.get(status, 0) + count
        said = ", ".join(f"{'lost' if status == '0' else status} {errors[status]:,}" for status in sorted(errors))
        worst, middle = seconds[-1], median(seconds)
        lines.append(f"| {name} | {len(mine)} | {who} | {middle:.1f} s | {worst:.1f} s | {said or 'none'} |")
    answers, wrong, unguarded = (sum(row[key] for row in rows) for key in ("answers", "wrong", "unguarded"))
    seeds = " and ".join(map(str, sorted({row["seed"] for row in rows})))
    lines += [
        "",
        f"{len(rows)} times `kill -9` at a random moment, under 6 clients that ask about new pictures. Until every "
        f"name, plain and guarded, had answered a later question rightly, {answers:,} answers came, each compared with "
        f"transformers' `generate()`: **{wrong} wrong, {unguarded} unguarded**. *Lost*: connections; where your "
        "supervisor is named, a whole start of vLLM is in the time. `make kills`, seeds "
        f"{seeds}, the embedded model, in several sittings over two builds, the last on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)
