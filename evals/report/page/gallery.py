"""The pictures where decoders disagree, each with its map and every answer; filters that need no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.report.disagreement import STANDINGS, Standing, standings, watched
from lvlm_guard.evals.report.figures import number
from lvlm_guard.evals.report.page.replies import replies
from lvlm_guard.report import Html, Picture, panel, section, table, tag
from lvlm_guard.report.html import join

Sample = Mapping[str, Any]
Run = Mapping[str, Any]
Task = Mapping[str, Any]
Entry = Mapping[str, Any]
Found = tuple[Sample, dict[str, Standing]]

_SOUGHT = "Another map is of the first object that was named in vain: where the matcher looks for it."
MOST = 60  # pictures of a page, whatever the index lists
_MEANT = {
    "broken": "{reference} was better",
    "fixed": "better than {reference}",
    "unreadable": "neither yes nor no was read, here or in {reference}'s answer",
    "changed": "names other objects of the picture, or answers otherwise where only the task can judge",
}


def read_evidence(folder: Path) -> tuple[str, dict[tuple[str, str], Entry]]:
    """Return what the maps are, and the entries by task and key; nothing where no evidence was collected."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        entries = {(entry["task"], entry["key"]): entry for entry in index["items"][:MOST]}
        return str(index["maps"]), entries
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


def gallery(run: Run, samples: Sequence[Sample], folder: Path) -> tuple[list[Html], str]:
    """Return a section for each task with pictures, and the style rules of their filters."""
    maps, entries = read_evidence(folder)
    names = watched(run)
    sections, rules = [], []
    for number_, task in enumerate(run["tasks"]):
        found: list[Found] = []
        for sample in samples:
            if sample["task"] == task["name"] and (standing := standings(task, sample, run)):
                found.append((sample, standing))
        shown = sorted(
            (pair for pair in found if (task["name"], pair[0]["key"]) in entries), key=lambda pair: _rank(pair[1])
        )
        if not found:
            continue
        articles = [_article(run, task, *pair, entries[task["name"], pair[0]["key"]], folder, names) for pair in shown]
        content = [_filters(run, number_, found, shown, names), *articles] if shown else []
        place = f"pictures-{number_}"
        sections.append(
            section(
                f"Where {task['name']} differs",
                tag("div", *content, id=place),
                lead=_lead(run, len(found), len(shown), f"{maps} {_SOUGHT}" if task["kind"] == "chair" else maps),
            )
        )
        rules += [_rule(place, n, standing) for n in range(len(names)) for standing in STANDINGS] if shown else []
    return sections, "\n".join(rules)


def _rank(found: Mapping[str, Standing]) -> int:
    return min(STANDINGS.index(standing) for standing in found.values())


def _lead(run: Run, found: int, shown: int, maps: str) -> str:
    told = f"{found} items where a method does otherwise than {run['reference']}"
    if not shown:
        return f"{told}. No pictures were collected with this run."
    rule = (
        f"; {shown} are shown, chosen by rule: every method and outcome in turn, in the order of the questions, new "
        "pictures first. What a method broke comes first, then what it fixed. "
    )
    return told + rule + maps


def _rule(place: str, number_: int, standing: str) -> str:
    chosen, others = f"#{place}-{number_}-{standing}:checked", f".example:not(.of-{number_}-{standing})"
    return f"#{place}:has({chosen}) {others} {{ display: none; }}"


def _filters(run: Run, task: int, found: Sequence[Found], shown: Sequence[Found], names: Sequence[str]) -> Html:
    place = f"pictures-{task}"
    columns = [standing for standing in STANDINGS if any(standing in told.values() for _, told in found)]

    def choice(name: str, text: str, checked: bool = False) -> Html:
        button = tag("input", type="radio", name=place, id=f"{place}-{name}", checked=checked)
        return tag("label", button, " ", text)

    body: list[list[object]] = []
    for number_, decoder in enumerate(names):
        cells: list[object] = [decoder]
        for standing in columns:
            whole, here = (sum(told.get(decoder) == standing for _, told in of) for of in (found, shown))
            text = f"{here} of {whole}" if here < whole else f"{whole}"
            cells.append(choice(f"{number_}-{standing}", text) if here else f"{whole or '–'}")
        body.append(cells)
    every = choice("all", f"show all {len(shown)}", True)
    meant = "; ".join(f"{standing}: {_MEANT[standing].format(reference=run['reference'])}" for standing in columns)
    return tag(
        "div",
        tag("p", every),
        table(
            ["show only", *columns],
            body,
            note=f"How many are shown, of how many there are. {meant[0].upper()}{meant[1:]}.",
        ),
        class_="filters",
    )


def _article(
    run: Run,
    task: Task,
    sample: Sample,
    found: Mapping[str, Standing],
    entry: Entry,
    folder: Path,
    names: Sequence[str],
) -> Html:
    main = [run["reference"], *(name for name in names if name in sample["answers"])]
    rest = [name for name in sample["answers"] if name not in main]
    kinds = " ".join(f"of-{names.index(name)}-{standing}" for name, standing in found.items())
    tone = {"broken": "bad", "fixed": "good"}.get(STANDINGS[_rank(found)], "")
    pictures = [figure for view in entry["views"] for figure in _pictures(view, folder)]
    problem = entry.get("problem")
    return tag(
        "article",
        tag("h3", _heading(found), class_=tone or None),
        tag("p", f"{task['name']} {sample['key']}, picture {sample['picture']}{_rows(sample)}", class_="note"),
        tag(
            "div",
            panel(pictures) if pictures else None,
            tag(
                "div",
                tag("p", problem, class_="note") if problem else None,
                tag(
                    "p",
                    "Asked: ",
                    tag("b", sample.get("question") or sample.get("prompt", ""), class_="text"),
                    _truth(task, sample),
                ),
                replies(task, sample, main),
                _more(task, sample, rest),
                _support(entry),
            ),
            class_="shown" if task["kind"] != "chair" else None,
        ),
        class_=f"example {kinds}",
    )


def _more(task: Task, sample: Sample, rest: Sequence[str]) -> Html | None:
    if not rest:
        return None
    return tag("details", tag("summary", f"{len(rest)} more: samples and controls"), replies(task, sample, rest))


def _heading(found: Mapping[str, Standing]) -> str:
    words = {
        "broken": "Broken by",
        "fixed": "Fixed by",
        "unreadable": "Unreadable with",
        "changed": "Changed by",
    }
    told: list[str] = []
    for standing in STANDINGS:
        by = [name for name, its in found.items() if its == standing]
        if by:
            said = f"{words[standing]} {', '.join(by)}"
            told.append(said if not told else said[0].lower() + said[1:])
    return "; ".join(told)


def _rows(sample: Sample) -> str:
    rows = [row for row in sample.get("rows") or () if row != sample["task"]]
    return f"; {', '.join(rows)}" if len(rows) > 1 or sample["kind"] == "pope" else ""


def _truth(task: Task, sample: Sample) -> Html:
    if task["kind"] == "chair":
        return join((" In the picture: ", tag("b", ", ".join(sample["truth"]) or "nothing nameable"), "."))
    if sample.get("truth") is None:
        return Html("")
    return join((" Right answer: ", tag("b", str(sample["truth"]), class_="text"), "."))


def _pictures(view: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Return the figures of one picture; a file that is gone is left out."""
    kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
    wanted = (
        ("picture", "Picture", ""),
        ("map", "Relevance", view.get("note", "")),
        ("local", f"Local view{kept}", ""),
        ("sought_map", f"Map of “{view.get('sought', '')}”", ""),
    )
    return [
        Picture(folder / view[what], title, caption)
        for what, title, caption in wanted
        if view.get(what) and (folder / Path(view[what]).name).is_file()
    ]


def _support(entry: Entry) -> Html | None:
    told = [f"{one['object'] or 'yes'} {number(one['probability'])}" for one in entry.get("support", ())]
    return tag("p", f"The matcher's own probability: {', '.join(told)}.", class_="note") if told else None
