"""The demo: ask, score, report on the embedded world, told as a story on a page of its own.

    from lvlm_guard.evals.studies import demo
    results, page = demo.run("demo-out")

The page has a few pictures, asked plainly and guarded, and the tables; its template has the words. The pictures are
the first, in the order of the test scenes, that meet stated rules, failures included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lvlm_guard.embedded.text import article
from lvlm_guard.evals.decoders.decoder import PLAIN, REFERENCE
from lvlm_guard.evals.errors import VoidRunError
from lvlm_guard.evals.infer.ask import MANY, ask
from lvlm_guard.evals.infer.generate import Asker, Prepared, prepare, prepare_run
from lvlm_guard.evals.report.disagreement import judge
from lvlm_guard.evals.report.page import page_environment
from lvlm_guard.evals.report.saved import Run, read_run
from lvlm_guard.evals.report.terminal import sentences
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.pretrained import spoken
from lvlm_guard.report import Picture, legend, overlay, panel, token_marks, token_strip

SETTINGS = Settings(batch=MANY)
QUICK = SETTINGS.quick()

RULES: dict[str, dict[str, tuple[bool | None, bool, bool]]] = {
    "agla": {"corrects": (False, True, True), "leaves": (False, False, True), "breaks": (True, False, False)},
    "vote": {"keeps": (False, True, False), "lets": (None, False, False)},
}
"""Method -> names of the template's titles -> what the first such item is shown for: whether greedy is right (None:
either) and the method is; whether only of the hardest questions."""


def run(out: str | Path = "demo-out", settings: Settings = SETTINGS, **how: Any) -> tuple[dict[str, Any], Path]:
    """Ask every decoder on the embedded world, score the answers, and write the page.

    An interrupted run goes on where it stopped when the same command is given again; a demo of other settings or code
    in the folder is replaced. `how` are "echo", "bar", "workers", "started_over" of `infer.ask.ask`, whose errors these
    are too. Returns what `results.json` holds, and the page's path; raises `VoidRunError` of answers that mean nothing.
    """
    folder = ask(settings, out, command="demo", replaces=True, **how)
    results = score(folder)
    if results["void"]:
        raise VoidRunError(f"The run in {folder} is void, so it has no page: {' '.join(results['void'])}")
    return results, _write(read_run(folder), prepare_run(settings))


def _write(saved: Run, prepared: Prepared) -> Path:
    page = page_environment().get_template("demo.html.jinja")
    told = {"run": saved, "results": saved.results, "sentences": sentences(saved.results), "exp": math.exp}
    text = page.render(examples=list(_examples(saved, prepared)), legend=Markup(str(legend())), **told)
    return write_lines(saved.folder / "demo.html", [text])


def _examples(saved: Run, prepared: Prepared) -> Iterator[dict[str, Any]]:
    asker = prepared.answerer
    assert isinstance(asker, Asker)
    for task in prepared.tasks:
        method = "vote" if task.kind == "chair" else "agla"
        answered = list(_answered(task, saved, method)) if method in asker.decoders else []
        for name, (plain, guarded, hard) in RULES[method].items():
            for item, plainly, right, wrong in answered:
                hardest = "pope_adversarial" in item.rows
                if plain in (None, right[0]) and right[1] == guarded and hardest >= hard:
                    told = {"case": name, "good": guarded, "plain": plainly, "wrong": wrong}
                    yield _shown(asker, task, item, method) | told
                    break


def _answered(task: EvalTask, saved: Run, method: str) -> Iterator[tuple[Item, str, list[bool], list[list[str]]]]:
    told = task.describe()
    for item, (asked, said) in zip(task.items, saved.by_item(task.name), strict=True):
        judged = [judge(told, asked, said[name][0]) for name in (REFERENCE, method)]
        absent = [[node for _, node, _ in one.caption.hallucinated] if one.caption else [] for one in judged]
        right = [not names if one.caption else one.mark == "right" for one, names in zip(judged, absent, strict=True)]
        yield item, judged[0].text, right, absent


def _shown(asker: Asker, task: EvalTask, item: Item, method: str) -> dict[str, Any]:
    """Ask once more, alone and with a trace; float32 gives the tokens of the batch again."""
    guard, inputs = asker.decoders[method].guard(0), prepare(asker.processor, [item])
    options = {**PLAIN, "max_new_tokens": task.max_new_tokens, "return_dict_in_generate": True}
    trace = asker.model.generate(**inputs, guard=guard, **options).guard
    view, told = trace.view(0), trace.to_dict()
    truth = "in view: " + (", ".join(sorted(item.truth)) or "nothing nameable")
    if task.kind != "chair":
        truth = f"{item.truth}: {article(item.tags['object'])} is {'' if item.truth == 'yes' else 'not '}in view"
    image, marks = item.pictures()[0], token_marks(told, lambda ids: spoken(asker.processor, ids))
    pictures = [Picture(image, "The picture", truth)]
    if view.match is not None:
        keep, note = view.match.keep, "Bright: relevant, says the matcher. The pale line bounds what is kept."
        drawn, alt = overlay(image, view.match.relevance, keep=keep), "relevance map over the picture"
        pictures.append(Picture(drawn, "What matters to the question", note, alt=alt))
        if view.local is not None:  # a method may hide a part without painting one
            kept = f"{float(keep.float().mean()):.0%} of the picture is kept."
            pictures.append(Picture(view.local, "The local view", kept))
    return {
        "asked": item.prompt,
        "method": told["method"],
        "viewed": view.match is not None,
        "pictures": Markup(str(panel(pictures))),
        "strip": Markup(str(token_strip(marks))),
        "caption": task.kind == "chair",
        "marks": marks,
        "overruled": [mark for mark in marks if mark.overruled is not None],
    }
