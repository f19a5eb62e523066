"""`lvlm-guard generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from rich.table import Table
from typer import Option

from lvlm_guard import __version__
from lvlm_guard.cli.answering import Answer, Asking, answers_of
from lvlm_guard.cli.console import bullets, out, print_json, quiet_libraries, usage
from lvlm_guard.cli.options import (
    Adapter,
    Device,
    Dtype,
    Json,
    Knobs,
    MaxPixels,
    Method,
    Model,
    Pictures,
    method_of,
    pictures_of,
)
from lvlm_guard.methods import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image


_REPORT = Option(help="Write a page: maps, views, overruled tokens.", dir_okay=False, metavar="FILE.html")


def generate(
    asking: Asking,
    prompt: Annotated[str | None, Option(help="What to ask.", metavar="TEXT")] = None,
    image: Pictures = None,
    model: Model = "embedded",
    adapter: Adapter = None,
    method: Method = DEFAULT,
    knob: Knobs = None,
    report: Annotated[Path | None, _REPORT] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_pixels: MaxPixels = None,
    json: Json = False,
) -> None:
    """Answer a question about a picture, guarded; with --compare plainly too.

    Without --image and --prompt the embedded model describes a scene of its own world.

    [bold]Example:[/bold] lvlm-guard generate --image world:3 --prompt "is there a car in the image ?" --compare
    --report answer.html
    """
    if prompt is None and model != "embedded":
        raise usage("Give a question: --prompt TEXT.")
    pictures, remarks = pictures_of(image, model, max_pixels)
    quiet_libraries()
    from lvlm_guard.embedded.world import CAPTION_PROMPT
    from lvlm_guard.pretrained import load_model, spoken, unknown_words

    prompt = CAPTION_PROMPT if prompt is None else prompt
    chosen = method_of(method, knob)
    lvlm, processor = load_model(model, device=device, dtype=dtype, adapter=adapter)
    unknown = unknown_words(processor, prompt)
    if unknown:
        remarks.append(f"The model has no words for: {', '.join(unknown)}. It reads <unk> there.")
    answers = answers_of((lvlm, processor), chosen, pictures, prompt, asking, asking.judge(model, chosen))
    remarks += answers[-1].trace.notes if answers[-1].trace else []
    shown, decode = image or ["world:0"], partial(spoken, processor)
    if report is not None:
        from lvlm_guard.report import write_page

        write_page(report, _page(answers, pictures, prompt, model, remarks, decode))
    if json:
        asked = {"images": shown, "prompt": prompt}
        rows = [{"model": model, "method": one.method} | asked | _row(one) for one in answers]
        print_json("generate", rows, lvlm.device, notes=remarks)
        return
    _show(answers, shown, prompt, decode)
    bullets(remarks)
    if report is not None:
        out().print(f"[dim]page[/]  {escape(str(report))}")


def _row(one: Answer) -> dict[str, Any]:
    trace = one.trace.to_dict() if one.trace else None
    row = {"answer": one.text, "tokens": len(one.tokens), "seconds": one.seconds, "trace": trace}
    return row | ({"candidates": [{"score": s, "answer": text} for s, text in one.others]} if one.others else {})


def _show(answers: list[Answer], images: list[str], prompt: str, decode: Callable[[Sequence[int]], str]) -> None:
    from lvlm_guard.report import token_marks

    table = Table.grid(padding=(0, 2))
    table.add_row("[dim]image[/]", escape(", ".join(images)))
    table.add_row("[dim]asked[/]", escape(prompt))
    for one in answers:
        table.add_row(f"[bold]{escape(one.method)}[/]", _marked(one) or "[dim](nothing)[/]")
        for score, text in one.others[1:]:
            table.add_row(f"[dim]{score:+.2f}[/]", f"[dim]{escape(text)}[/]")
    trace = answers[-1].trace
    if trace is not None:
        marks = token_marks(trace.to_dict(), decode) if trace.steps else []
        over = [f"{(mark.overruled or '').strip()} → {mark.text.strip()}" for mark in marks if mark.overruled]
        table.add_row("[dim]overruled[/]", escape("; ".join(over)) if over else "[dim]no token[/]")
        if "verdicts" in trace.extra:
            table.add_row("[dim]verified[/]", _verdicts(trace.extra["verdicts"][0]))
        table.add_row("[dim]cost[/]", f"[dim]{_cost(answers[-1])}[/]")
    out().print(table)


def _marked(one: Answer) -> str:
    """Return an answer with the objects marked that its picture may not hold."""
    text, parts, end = one.text, [], 0
    found = one.trace.extra.get("verdicts") if one.trace is not None else None
    for checked in found[0] if found else []:
        start, stop = checked.mention.start, checked.mention.end
        if checked.verdict.doubtful and start >= end:
            parts += [escape(text[end:start]), f"[red]{escape(text[start:stop])}?[/]"]
            end = stop
    return "".join([*parts, escape(text[end:])])


def _verdicts(checked: list[Any]) -> str:
    if not checked:
        return "[dim]it names no object of the list[/]"
    told = {one.mention.object: one.verdict for one in checked}
    said = {name: f"{escape(name)} {verdict.p_supported:.2f}" for name, verdict in told.items()}
    return ", ".join(f"[red]{said[name]}[/]" if told[name].doubtful else said[name] for name in said)


def _cost(one: Answer) -> str:
    trace = one.trace
    assert trace is not None
    return (
        f"{len(one.tokens)} tokens in {one.seconds:.2f} s, {trace.execution}: {trace.global_forwards} forwards, "
        f"{trace.local_forwards} more for other branches, {trace.masks} second views"
    )


def _page(
    answers: list[Answer],
    pictures: Sequence[Image],
    prompt: str,
    model: str,
    remarks: list[str],
    decode: Callable[[Sequence[int]], str],
) -> str:
    from lvlm_guard.report.answer import Looked, Said, answer_page

    guarded = answers[-1]
    assert guarded.trace is not None
    seen = enumerate(zip(pictures, guarded.asked, strict=True))
    looked = [Looked(image, *_seen(image, asked, guarded.trace.views.get(index))) for index, (image, asked) in seen]
    said = [Said(one.method, one.text, one.seconds, one.trace.to_dict() if one.trace else None) for one in answers]
    made = f"lvlm-guard {__version__}, generate --report"
    return answer_page(prompt, looked, said, decode, model=model, remarks=remarks, made=made)


def _seen(picture: Image, asked: str, view: Any) -> tuple[Any, Any, Image | None, str]:
    """Return relevance, what is kept, the local view in the picture's own shape, and a caption."""
    match = getattr(view, "match", None)
    if match is None:
        return None, None, getattr(view, "local", None), ""
    from lvlm_guard.matching import local_view

    keep = match.keep.cpu().numpy()
    said = f"matched with “{asked}”: score {match.score:.3f}, {keep.mean():.0%} kept"
    return match.relevance.cpu().numpy(), keep, local_view(picture, match, "original"), said
