"""The contents of a `results.json`, made by hand: a run whose agla says no more often, whose vote says less."""

from __future__ import annotations

from typing import Any

ROLES = {
    "greedy": "reference",
    "sample": "plain",
    "tilt": "control",
    "prompt-no": "control",
    "matcher": "matcher",
    "agla": "method",
    "agla-random": "control",
    "vote": "method",
}
LOWER = ("chair_i", "chair_s", "unreadable", "repeats", "repeat_4", "cut")
NEITHER = ("yes_ratio", "tilt", "length", "objects_named", "n2p", "p2n", "one_wayness", "label_yes", "mass")


def row(task: str, decoder: str, metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    direction = "lower" if metric in LOWER else "" if metric in NEITHER else "higher"
    made = {"task": task, "split": "test", "decoder": decoder, "baseline": None, "role": ROLES.get(decoder, "method")}
    made |= {"metric": metric, "direction": direction, "value": value, "low": None, "high": None, "p": None}
    return made | {"n": 300, "pictures": 50, "bold": False, "limit": None} | more


def change(task: str, decoder: str, metric: str, value: float, spread: float = 0.02, **more: Any) -> dict[str, Any]:
    clear = abs(value) > spread
    made = {"baseline": "greedy", "low": value - spread, "high": value + spread, "p": 0.0002 if clear else 0.5}
    return row(task, decoder, metric, value, **(made | {"bold": clear} | more))


def decoder(name: str, **more: Any) -> dict[str, Any]:
    role = ROLES.get(name, "method")
    known = {
        "name": name,
        "about": f"about {name}",
        "role": role,
        "baseline": None if role == "reference" else "greedy",
    }
    known |= {"method": name if role == "method" else None, "control_of": None, "knobs": {}, "seeds": 1, "point": {}}
    return known | {"options": {"do_sample": False}, "sampled": False, "matcher": None, "matchers": []} | more


def results(**more: Any) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for task in ("pope_random", "pope_adversarial", "pope_all"):
        for place, name in enumerate(ROLES):
            gain = {"agla": 0.1, "vote": -0.1}.get(name, 0.01)
            for metric in ("accuracy", "accuracy_matched", "auroc", "balanced_accuracy", "f1", "precision", "recall"):
                rows.append(row(task, name, metric, 0.8 + gain, low=0.78, high=0.86))
                if name != "greedy":
                    rows.append(
                        change(task, name, metric, gain if metric == "accuracy" else gain / 10, fixed=40, broken=10)
                    )
            rows += [row(task, name, "yes_ratio", 0.45 if name == "agla" else 0.6), row(task, name, "unreadable", 0.0)]
            rows.append(row(task, name, "tilt", -0.6 + place / 10))
            if name != "greedy":
                rows += [change(task, name, "n2p", 12, fixed=None), change(task, name, "p2n", 40)]
        rows.append(row(task, "greedy", "label_yes", 0.5))
    for name in ROLES:
        if name in ("matcher", "tilt"):
            continue
        less = name == "vote"
        for metric, value in (
            ("chair_i", 0.2),
            ("chair_s", 0.4),
            ("object_recall", 0.7),
            ("f1", 0.7),
            ("repeats", 0.2),
        ):
            rows.append(row("chair", name, metric, value - 0.1 * less, low=value - 0.12, high=value + 0.02))
            if name != "greedy":
                rows.append(change("chair", name, metric, -0.1 * less, spread=0.03))
        rows += [row("chair", name, "length", 6.0 if less else 12.0), row("chair", name, "objects_named", 3.0)]
        for limit in (32, 64, 128):
            rows += [
                row("chair", name, f"{m}@{limit}", 0.1 + limit / 1000, limit=limit)
                for m in ("chair_i", "object_recall")
            ]
    costs = [
        row(task, name, metric, value)
        for task in ("world_pope", "world_chair")
        for name in ROLES
        if name != "tilt"
        for metric, value in (("seconds", 0.02), ("time_ratio", 1.5), ("tokens", 5.0), ("masks", 1.0))
    ]
    told = {"split": "test", "pictures": 50, "n": 600, "about": {"source": "a world", "prompt": "Is there a dog?"}}
    told |= {"digest": "d1gest", "max_new_tokens": 8, "until": [], "vocabulary": None}
    tasks = [
        {"name": "world_pope", "kind": "pope", "rows": ["pope_random", "pope_adversarial"]} | told,
        {"name": "world_chair", "kind": "chair", "rows": ["chair"]} | told,
    ]
    words = {"agla": "moves the threshold", "vote": "ranks worse", "tilt": "moves the threshold"}
    verdicts = [
        {"task": task, "decoder": name, "role": ROLES[name], "verdict": word, "best_control": "tilt"}
        | {"sentence": "Accuracy +.100 [+.080, +.120] against greedy; AUROC +.010 [−.010, +.030]."}
        for task in ("pope_random", "pope_all")
        for name, word in words.items()
    ]
    return {
        "identity": "1d",
        "reference": "greedy",
        "rows": rows,
        "costs": costs,
        "verdicts": verdicts,
        "warnings": [],
        "void": [],
        "settings": {"model": "embedded", "methods": ["agla", "vote"]},
        "sweep": None,
        "decoders": [decoder(name) for name in ROLES],
        "tasks": tasks,
    } | more
