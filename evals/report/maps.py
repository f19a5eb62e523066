"""What the matcher makes of an item's pictures: the map, the local view, how well claims are supported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import UnsupportedCallError
from lvlm_guard.evals.decoders.decoder import PLAIN, Decoder
from lvlm_guard.evals.spec.items import Item
from lvlm_guard.report.pictures import overlay

if TYPE_CHECKING:
    from lvlm_guard.engine.trace import SecondView
    from lvlm_guard.evals.infer.generate import Asker
    from lvlm_guard.matching import Matcher


@dataclass(frozen=True)
class Maps:
    """The pictures of items, with maps where a matcher in this process makes them."""

    about: str  # what is shown, or why there are pictures alone, in a sentence
    asker: Asker | None = None
    matcher: Matcher | None = None  # who makes the map; None: nobody
    decoder: Decoder | None = None  # whose local view is shown; None: no method of the run cuts one

    @property
    def version(self) -> str:
        """What decides the maps beside the item."""
        if self.matcher is None:
            return "pictures alone"
        knobs = sorted(self.decoder.knobs.items(), key=str) if self.decoder else []
        return f"{self.matcher.version} {self.decoder.name if self.decoder else ''} {knobs}"

    def of(self, item: Item, objects: Sequence[str]) -> dict[str, Any]:
        """Return the item's pictures, each with its map, and what the matcher says of the claims: that each of the
        `objects` is there, or else what a yes/no question asks.

        Raises:
            GuardError: the picture or the question can't be used.
        """
        from lvlm_guard.matching.questions import yes_no_claim
        from lvlm_guard.methods.vote import Vote, claim_about

        if self.asker is None or self.matcher is None:
            return {"views": [{"picture": picture} for picture in item.pictures()]}
        # sums depend on what is computed together: what the run remembers could differ in the last bit
        self.matcher.forget()
        found: dict[str, Any] = {
            "views": [_shown(view, made) for view, made in self._looked(item, self.asker, self.matcher)]
        }
        question = item.question or item.prompt
        claims = {claim_about(name, Vote.template): name for name in objects}
        if not objects and yes_no_claim(question):
            claims = {question: ""}
        if not found["views"] or not claims:
            return found
        image = item.pictures()[0]
        try:
            shares = self.matcher.support(image, list(claims)).tolist()
        except UnsupportedCallError:  # a matcher of maps alone
            return found
        if objects:
            (match,) = self.matcher([image], [next(iter(claims))])
            found["views"][0] |= {"sought": objects[0], "sought_map": overlay(image, match.relevance)}
        found["support"] = [
            {"claim": claim, "object": name, "probability": round(float(share), 4)}
            for (claim, name), share in zip(claims.items(), shares, strict=True)
        ]
        return found

    def _looked(self, item: Item, asker: Asker, matcher: Matcher) -> list[tuple[Any, SecondView]]:
        """Return the item's pictures, each with its match and what the method makes of it."""
        import torch

        from lvlm_guard.engine.trace import SecondView
        from lvlm_guard.evals.infer.generate import prepare

        inputs = prepare(asker.processor, [item])
        views = inputs["guard_views"].views()
        if self.decoder is None or self.decoder.guard is None:
            found = matcher([view.image for view in views], [view.text for view in views])
            return [(view, SecondView(match=match)) for view, match in zip(views, found, strict=True)]
        # "batched" makes the local view even where the first token would not need it
        options = {**PLAIN, "guard_execution": "batched", "max_new_tokens": 1, "return_dict_in_generate": True}
        with torch.inference_mode():
            inputs = inputs.to(asker.model.device, asker.model.dtype)
            out = asker.model.generate(**inputs, **options, guard=self.decoder.guard(0))
        return [(view, out.guard.view(view.index)) for view in views]


def maps_of(answerer: object) -> Maps:
    """Return who makes the maps of an answerer: an `Asker`; any other answered elsewhere."""
    from lvlm_guard.evals.infer.generate import Asker

    if not isinstance(answerer, Asker):
        return Maps("The answers came from a server, which gives no relevance maps: pictures stand alone.")
    guarded = [(d, d.guard(0)) for d in answerer.decoders.values() if d.guard and d.role == "method"]
    cutting = ((d, method.matcher) for d, method in guarded if hasattr(method, "matcher") and method.branches())
    decoder, own = next(cutting, (None, None))
    matcher = own or answerer.matcher or next(iter(answerer.matchers.values()), None)
    if matcher is None:
        return Maps("No method of this run asks a matcher, so there are no relevance maps.")
    about = "Relevance: which parts of the picture the matcher finds relevant to the question; "
    if decoder is None:
        return Maps(f"{about}no method of this run cuts a view from it.", answerer, matcher)
    about += f"bright is relevant. The pale line bounds what {decoder.name} keeps in its local view, black elsewhere."
    return Maps(about, answerer, matcher, decoder)


def _shown(view: Any, made: SecondView) -> dict[str, Any]:
    shown: dict[str, Any] = {"picture": view.image, "text": view.text}
    match, local = made.match, made.local
    if match is not None:
        shown["map"] = overlay(view.image, match.relevance, keep=match.keep if local is not None else None)
        if local is not None:  # "squashed" views are squares: in the picture's shape, they can be compared with it
            shown["local"] = local if local.size == view.image.size else local.resize(view.image.size)
            shown["kept"] = round(float(match.keep.float().mean()), 4)
        if match.note:
            shown["note"] = match.note
    return shown
