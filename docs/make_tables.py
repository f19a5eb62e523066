"""Write the README's tables from what the commands printed, so that no figure is typed by hand.

    lvlm-guard demo --json > docs/results/demo.json
    lvlm-guard eval run --tasks world_pope_real,world_chair_real --seeds 1 --limit 120 --captions 160 --json \
        > docs/results/real.json
    lvlm-guard eval run --split val --methods focus --no-controls --limit 80 --captions 160 \
        --sweep share=0.1,0.25,0.4,0.5 --sweep beta=0.1,0.5 --json > docs/results/focus_share.json
    lvlm-guard eval run --methods all ... --json > drawn.json, and on world_pope_real,world_chair_real > real.json
    python docs/method_tables.py drawn.json real.json > docs/results/methods.json
    python docs/vote_tables.py ... > docs/results/vote_named.json
    lvlm-guard bench --threads 1 --json > docs/results/bench.json
    lvlm-guard bench --peers --methods vcd,icd,m3id,pai,vista,agla --executions auto --threads 1 --json \
        > docs/results/peers.json
    lvlm-guard bench --shape 1b --dtype bfloat16 --methods agla,focus --executions auto,batched --batches 1 --blocks 3 \
        --max-new-tokens 16 --threads 2 --json > docs/results/bench_1b.json
    OMP_NUM_THREADS=1 python docs/measure_batch.py > docs/results/batch.json
    OMP_NUM_THREADS=1 python docs/measure_overhead.py > docs/results/overhead.json
    python -m lvlm_guard.serve.measure --json > docs/results/serve.json                   (at 166b566, before the proxy)
    python -m lvlm_guard.serve.measure --guards vote --json > docs/results/serve_vote.json                   (the same)
    make soak && cp runs/soak.json docs/results/serve_soak.json
    make kills && cp runs/kills.json docs/results/serve_kills.json
    lvlm-guard train dual-prompt --compare --seeds 0,1,2 --pictures 4000 --steps 600 --batch 96 --validation 500 \
        --test-pictures 1000 --json > docs/results/dual-prompt.json
    lvlm-guard train ranker --compare --seeds 0,1,2 --json > docs/results/ranker.json
    lvlm-guard train dual-prompt --claims 3 --seeds 0,1,2 --pictures 4000 --steps 600 --validation 500 --out C
    lvlm-guard eval run --methods agla,vote --matcher blip-itm --matcher clip \
        --matcher dual-prompt=C/seed-0 ... --matcher ranker=R/seed-0 ... --json > all.json
    python docs/adapter_tables.py < all.json > docs/results/matchers.json
    lvlm-guard eval verify --limit 600 --matcher ... (as above) --json > docs/results/verify.json
    lvlm-guard train claims --preset ... --seeds 0,1,2 --out works --compare --json > a.json    (and b.json, of others)
    python docs/adapter_tables.py a.json b.json > docs/results/claims.json
    (likewise, of the best with --seeds 0,1,2,3,4, > docs/results/claims_five.json)
    lvlm-guard eval run --methods vote,focus --matcher blip-itm --matcher clip=embedded-clip \
        --matcher blackbox=works/blackbox/seed-0 ... --seeds 1 --limit 60 --captions 120 --json > guard.json
    python docs/adapter_tables.py < guard.json > docs/results/claims_guard.json
    lvlm-guard eval verify --limit 300 --matcher ... (as above) --json > docs/results/claims_verify.json
    lvlm-guard train distill --seeds 0,1,2 --pictures 2000 --questions 24 --json > docs/results/distilled.json
    lvlm-guard eval run --split val --methods vote --no-controls --limit 80 --captions 160 --adapter ... --json
        (its rows of the table's columns) > docs/results/fresh.json
    OMP_NUM_THREADS=1 python -m embedded_training.overhead --json > docs/results/training.json
    NLTK_DATA=... python docs/real_tables.py > docs/results/real_captions.json
    python docs/make_tables.py

A test fails when a page and docs/results differ.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from adapter_tables import adapter_table, claims_table, distilled_table, guard_table, loop_table, verify_table
from machines import machine
from method_tables import methods_table, which_table
from real_tables import TABLES as REAL
from rows import by_columns, captions, questions, short, time, times_of, value
from serve_tables import kills_table, serve_table, soak_table
from vote_tables import vote_named_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "engineer.md",
    ROOT / "docs" / "researcher.md",
    ROOT / "docs" / "operator.md",
    ROOT / "docs" / "trainer.md",
    ROOT / "docs" / "real_models.md",
    ROOT / "docs" / "which_method.md",
    ROOT / "docs" / "coming_from.md",
)
ABOUT = {
    "greedy": "plain, greedy",
    "sample": "plain, sampled",
    "tilt": "greedy, its threshold fitted on validation (control)",
    "olm": "greedy, but yes where it is close (control)",
    "sample-matched": "plain, sampled at temperature 1/3 (control of AGLA's and focus's sharpening)",
    "apc(0.5)": "plausibility cut .5 alone, sampled (control)",
    "apc(0.1)": "plausibility cut .1 alone, sampled (control)",
    "agla-random": "AGLA with a random map that keeps as much (control)",
    "focus-random": "focus with a random map that keeps as much (control)",
    "matcher": "the matcher alone (can't write captions)",
    "vcd": "VCD",
    "agla": "**AGLA**",
    "agla-sample": "AGLA, sampled as in the paper",
    "focus": "**focus** (ours, new)",
    "vote": "**vote** (ours)",
}


def demo_table(result: dict[str, Any]) -> str:
    """Return the table of decoders."""
    rows = by_columns(result["rows"] + result["differences"])
    times = times_of(result["costs"])
    verdicts = {v["decoder"]: v["verdict"] for v in result["verdicts"] if v["task"] == "pope_all"}
    lines = [
        "| decoder | POPE accuracy | at the labels' share of yes | AUROC | share of yes | verdict | CHAIR_i (less is "
        "better) | object recall | F1 | words | repeats | time × greedy: questions, captions |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for decoder, about in ABOUT.items():
        verdict = verdicts.get(decoder, "")
        cells = [about, *questions(rows, decoder, verdict), *captions(rows, decoder), time(times, decoder)]
        lines.append("| " + " | ".join(cells) + " |")
    asked, best = {task["name"]: task for task in result["tasks"]}, result["verdicts"]
    control = {v["decoder"]: v["best_control"] for v in best if v["task"] == "pope_all"}
    claims = [
        f"{method} {short(less['value'], True)} [{short(less['low'], True)}, {short(less['high'], True)}] against "
        f"{control[method]}"
        for method in ("agla", "focus", "vote", "vcd")
        if (less := rows.get(("pope_all", method, control.get(method), "accuracy"))) is not None
    ]
    lines += [
        "",
        f"`make demo` (as `lvlm-guard eval run`): {asked['world_pope']['pictures']} pictures × 18 questions (the mean "
        f"of POPE's three kinds) and {asked['world_chair']['n']} captions, held out; {result['settings']['seeds']} "
        "seeds for what is sampled; after a value its paired difference to greedy with its 95 % interval by bootstrap "
        "over pictures, bold where it excludes zero. Accuracy against the best control of the same decoding, chosen on "
        f"{asked['world_pope']['calibration']} validation questions: {'; '.join(claims)}. Time of a request with "
        f"picture and mask, {result['settings']['batch']} at once. Left out: {' '.join(result['flags'])} On "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def real_table(result: dict[str, Any]) -> str:
    """Return the table of the scenes on photographs."""
    rows = by_columns(result["rows"])
    named = {task["name"]: task for task in result["tasks"]}
    pope, chair = (next(name for name in named if kind in name) for kind in ("pope", "chair"))
    whole = next(task for task, *_ in rows if task.startswith("pope") and "all" in task)
    captions = next(task for task, *_ in rows if task.startswith("chair"))
    shown = [(whole, metric) for metric in ("accuracy", "accuracy_matched", "auroc")]
    shown += [(captions, metric) for metric in ("chair_i", "object_recall")]
    lines = [
        "| decoder | POPE accuracy | at the labels' share of yes | AUROC | CHAIR_i (less is better) | object recall |",
        "|---|---|---|---|---|---|",
    ]
    for decoder, about in ABOUT.items():
        if (whole, decoder, None, "accuracy") in rows:
            cells = [value(rows, decoder, task, metric) for task, metric in shown]
            lines.append("| " + " | ".join([about, *cells]) + " |")
    lines += [
        "",
        f"`lvlm-guard eval run --tasks {pope},{chair}`: {named[pope]['pictures']} pictures × 18 questions and "
        f"{named[chair]['n']} captions, {result['settings']['seeds']} seed(s); after a value its paired difference to "
        f"greedy, bold where its 95 % interval excludes zero, on {machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def share_table(result: dict[str, Any]) -> str:
    """Return the table of focus's knobs on the validation split."""
    return validation_table(result, "--methods focus", "--sweep share=0.1,0.25,0.4,0.5 --sweep beta=0.1,0.5")


def fresh_table(result: dict[str, Any]) -> str:
    """Return the table of students that learnt what is named again, and of those that did not."""
    adapters = " ".join(f"--adapter {adapter}" for adapter in result["settings"]["adapters"])
    return validation_table(result, "--methods vote", adapters)


def validation_table(result: dict[str, Any], methods: str, more: str) -> str:
    """Return a table of decoders on 80 pictures and 160 captions of the validation split, without controls."""
    rows = by_columns(result["rows"])
    shown = [("pope_all", metric) for metric in ("accuracy_matched", "auroc")]
    shown += [("chair", metric) for metric in ("chair_i", "object_recall", "repeats")]
    lines = [
        "| decoder | POPE at the labels' share of yes | AUROC | CHAIR_i (less is better) | object recall | repeats |",
        "|---|---|---|---|---|---|",
    ]
    for decoder in dict.fromkeys(decoder for _, decoder, *_ in rows):
        lines.append(
            "| " + " | ".join([decoder, *(value(rows, decoder, task, metric) for task, metric in shown)]) + " |"
        )
    named, settings = {task["name"]: task for task in result["tasks"]}, result["settings"]
    lines += [
        "",
        f"`lvlm-guard eval run --split val {methods} --no-controls --limit 80 --captions 160 {more}`: "
        f"{named['world_pope']['pictures']} pictures × 18 questions and {named['world_chair']['n']} captions of the "
        f"{settings['split']} split, greedy, one training of the model; "
        "after a value its paired difference to greedy, bold where its 95 % interval excludes zero, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


PARTS = ("matcher_share", "reading_share")


def bench_table(result: dict[str, Any]) -> str:
    """Return the table of costs: medians of guarded over plain time, the mask counted."""
    found = {(r["method"], r["execution"], r["task"], r["batch"], r["metric"]): r for r in result["rows"]}
    ratios = [key for key in found if key[4] == "time_ratio"]
    work = list(dict.fromkeys(key[2:4] for key in ratios))
    titles = [f"{task}s, {'one by one' if batch == 1 else f'{batch} at once'}" for task, batch in work]
    lines = ["| method | run | " + " | ".join(titles) + " |", "|---" * (len(work) + 2) + "|"]
    for method, execution in dict.fromkeys(key[:2] for key in ratios):
        cells = []
        for task, batch in work:
            ratio = found[method, execution, task, batch, "time_ratio"]
            masks = found[method, execution, task, batch, "masks"]["value"]
            local = found[method, execution, task, batch, "local_forwards"]["value"]
            steps = found[method, execution, task, batch, "global_forwards"]["value"]
            token = found[method, execution, task, batch, "token_time_ratio"]["value"]
            asked, read = (found[method, execution, task, batch, name]["value"] for name in PARTS)
            cells.append(
                f"**{ratio['value']:.2f}** [{ratio['low']:.2f}, {ratio['high']:.2f}], a token {token:.2f}; "
                f"{local:.1f} more forwards beside {steps:.1f}, {masks:.1f} second pictures; "
                f"{asked:.0%} in the matcher, {read:.0%} reading anew"
            )
        lines.append(f"| {method} | {execution} | " + " | ".join(cells) + " |")
    least = {
        name: [
            1
            + found[name, way, *of, "time_ratio"]["value"] * sum(found[name, way, *of, part]["value"] for part in PARTS)
            for of in work
        ]
        for name, way in dict.fromkeys(key[:2] for key in ratios)
        if way == "auto"
    }
    told = ", ".join(f"{name} {' / '.join(f'{each:.2f}' for each in costs)}" for name, costs in least.items())
    lines += [
        "",
        f"`lvlm-guard bench --threads 1` on {machine(result['environment'])}. Of `auto`, the matcher and the reading "
        f"anew alone would cost: {told}.",
    ]
    return "\n".join(lines)


def shape_table(result: dict[str, Any]) -> str:
    """Return the table of costs at real proportions, and of what a call takes."""
    found = {(r["method"], r["execution"], r["task"], r["metric"]): r for r in result["rows"]}
    lines = [
        "| method | run | task | time over plain | seconds a call | peak memory | second pictures |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in dict.fromkeys(key[:3] for key in found):
        told = {key[3]: row for key, row in found.items() if key[:3] == way}
        less = told.get("time_ratio")
        ratio = "–" if less is None else f"{less['value']:.2f} [{less['low']:.2f}, {less['high']:.2f}]"
        cells = [f"{told['seconds_per_call']['value']:.2f}", f"{told['peak_memory_mib']['value'] / 1024:.2f} GiB"]
        masks = f"{told['masks']['value']:.1f}" if "masks" in told else "–"
        lines.append("| " + " | ".join([way[0], way[1], f"{way[2]}s", ratio, *cells, masks]) + " |")
    lines += [
        "",
        "`lvlm-guard bench --shape 1b --dtype bfloat16 --methods agla,focus --executions auto,batched --batches 1 "
        "--blocks 3 --max-new-tokens 16 --threads 2`: medians over blocks, 95 % intervals, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def batch_table(result: dict[str, Any]) -> str:
    """Return the table of rows a second by one and two workers."""
    found = {(r["way"], r["metric"]): r for r in result["rows"]}
    lines = ["| workers | rows a second | over one process | paid once, seconds |", "|---|---|---|---|"]
    for way in dict.fromkeys(way for way, _ in found):
        rate, ratio, start = (found[way, metric] for metric in ("rows_per_s", "rate_ratio", "start_s"))
        lines.append(
            f"| {way} | {rate['value']:.0f} [{rate['low']:.0f}, {rate['high']:.0f}] | "
            f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] | {start['value']:.1f} |"
        )
    lines += [
        "",
        f"`OMP_NUM_THREADS=1 python docs/measure_batch.py`: AGLA's captions of {result['rows'][0]['n']} new pictures a "
        f"way, medians of {result['rows'][0]['blocks']} blocks, 95 % intervals, on {machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def peers_table(result: dict[str, Any]) -> str:
    """Return the table of a request's time over plain generate()'s, ours beside another package's."""
    found = {
        (row["method"], row["task"], row["batch"]): f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for row in result["rows"]
        if row["metric"] == "request_ratio"
    }
    work = list(dict.fromkeys(key[1:] for key in found))
    titles = [f"{task}s, {'one by one' if batch == 1 else f'{batch} at once'}" for task, batch in work]
    theirs = {name.rsplit(" ", 1)[1]: name for name, *_ in found if " " in name}
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(work) + 1) + "|"]
    for method, other in theirs.items():
        for name, said in ((method, f"`{method}`"), (other, other)):
            lines.append("| " + " | ".join([said, *(found.get((name, *at), "–") for at in work)]) + " |")
    asked = ",".join(dict.fromkeys(name for name, *_ in found if " " not in name))
    lines += [
        "",
        "A request's time, the processor included, over plain generate()'s: `lvlm-guard bench --peers --methods "
        f"{asked} --executions auto --threads 1`, interleaved in one run, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def overhead_table(result: dict[str, Any]) -> str:
    """Return the table of what the harness costs: medians of its time over a bare loop's."""
    found = {(r["task"], r["method"], r["batch"]): r for r in result["rows"] if r["metric"] == "harness_ratio"}
    lines = ["| task | decoder | at once | harness / bare loop |", "|---|---|---|---|"]
    for (task, method, batch), row_ in found.items():
        share = f"{row_['value']:.3f} [{row_['low']:.3f}, {row_['high']:.3f}], n = {row_['n']}"
        lines.append(f"| {task} | {method} | {batch} | {share} |")
    lines += ["", f"`OMP_NUM_THREADS=1 python docs/measure_overhead.py` on {machine(result['environment'])}."]
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return a text whose marked places hold the tables of docs/results."""
    tables = (
        ("demo", demo_table),
        ("methods", methods_table),
        ("methods which", which_table),
        ("real", real_table),
        ("focus_share", share_table),
        ("fresh", fresh_table),
        ("vote_named", vote_named_table),
        ("bench", bench_table),
        ("bench_1b", shape_table),
        ("batch", batch_table),
        ("peers", peers_table),
        ("overhead", overhead_table),
        ("serve", serve_table),
        ("serve_vote", serve_table),
        ("serve_soak", soak_table),
        ("serve_kills", kills_table),
        ("dual-prompt", adapter_table),
        ("ranker", adapter_table),
        ("claims", claims_table),
        ("claims_five", claims_table),
        ("claims_guard", guard_table),
        ("claims_verify", verify_table),
        ("matchers", guard_table),
        ("verify", verify_table),
        ("distilled", distilled_table),
        ("training", loop_table),
    )
    for name, make in (*tables, *REAL.items()):
        start = f"<!-- {name} table: docs/make_tables.py -->\n"
        if start in text:
            table = make(json.loads((RESULTS / f"{name.split()[0]}.json").read_text(encoding="utf-8")))
            place = rf"({re.escape(start)}).*?(<!-- end -->)"
            text = re.sub(place, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
