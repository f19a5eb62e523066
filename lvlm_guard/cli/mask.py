"""`lvlm-guard mask`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lvlm_guard.cli.console import bullets, out, print_json, quiet_libraries
from lvlm_guard.cli.options import Json, Matcher, MaxPixels, Model, pictures_of


def mask(
    text: Annotated[str, typer.Option(help="The question to match the picture with.", metavar="TEXT")],
    image: Annotated[str | None, typer.Option(help="A picture file, or 'world:7'.", metavar="PATH")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="PNG to write.", dir_okay=False)] = Path("mask.png"),
    model: Model = "embedded",
    matcher: Matcher = None,
    max_pixels: MaxPixels = None,
    json: Json = False,
) -> None:
    """Draw which parts of a picture matter to a question, beside the local view that AGLA makes of it.

    Only the matcher runs. --model says whose matcher: the embedded one's own, else BLIP-ITM large.

    [bold]Example:[/bold] lvlm-guard mask --image cat.jpg --text "Is there a cat?" --out mask.png
    """
    from lvlm_guard.report import overlay, side_by_side

    pictures, remarks = pictures_of([image] if image else None, model, max_pixels)
    quiet_libraries()
    from lvlm_guard.matching import load_matcher, local_view

    found = load_matcher(matcher or ("embedded" if model == "embedded" else None))
    (match,) = found(pictures, [text])
    keep = match.keep.cpu().numpy()
    view = local_view(pictures[0], match, "original")
    sheet = side_by_side(
        [pictures[0], overlay(pictures[0], match.relevance.cpu().numpy(), keep=keep), view],
        ["the picture", f"what matters (score {match.score:.3f})", f"local view ({keep.mean():.0%} kept)"],
    )
    out_file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_file, format="PNG")
    said = [*remarks, *([match.note] if match.note else [])]
    row = {
        "image": image or "world:0",
        "text": text,
        "matcher": found.version,
        "score": match.score,
        "kept": float(keep.mean()),
        "out": str(out_file),
        "notes": said,
    }
    if json:
        print_json("mask", [row], "cpu")
        return
    console = out()
    console.print(f"score  {match.score:.3f}  [dim]{escape(found.version)}[/]")
    console.print(f"kept   {keep.mean():.1%} of the picture")
    console.print(f"wrote  {escape(str(out_file))}")
    bullets(said)
