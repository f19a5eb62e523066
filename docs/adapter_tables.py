"""The tables of the trainer's page: adapters beside their baselines."""

from __future__ import annotations

from typing import Any

from machines import machine

METRICS = {
    "i2t_r1": "picture to caption, R@1 among all captions and their swaps",
    "t2i_r1": "caption to picture, R@1",
    "swap_auroc": "true captions against swaps, AUROC",
    "swap_auroc_colour": "of these, swapped colours",
    "swap_auroc_exchange": "of these, colours exchanged between two objects",
    "srcc": "order (SRCC)",
    "mae": "count off by (MAE, less is better)",
    "accuracy": "count right",
    "absence_auroc": "none against some, AUROC",
}


def adapter_table(result: dict[str, Any]) -> str:
    """Return the table of an adapter's comparison."""
    found = {(r["method"], r["metric"]): r for r in result["rows"]}
    methods = [method for method in dict.fromkeys(method for method, _ in found) if _is_one(method, result["method"])]
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for metric, about in METRICS.items():
        if (methods[0], metric) in found:
            cells = (found.get((method, metric)) for method in methods)
            lines.append(f"| {about} | " + " | ".join(_value(cell) for cell in cells) + " |")
    lines += [
        "",
        f"`{result['call'].partition(' --out')[0]}`: {len(result['seeds'])} trainings each, "
        f"n = {result['rows'][0]['n']} held-out pictures, 95 % intervals by bootstrap over pictures and trainings, on "
        f"{machine(result['environment'])}.",
    ]
    return "\n".join(lines)


def _is_one(method: str, own: str) -> bool:
    """Whether a row's method is one, and not the difference of two ("ranker-clip")."""
    return method == own or not method.startswith(f"{own}-")


def _value(cell: dict[str, Any] | None) -> str:
    return "–" if cell is None else f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
