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
    from lvlm_guard.evals.infer.generate import Answerer, Asker
    from lvlm_guard.matching import Matcher


@dataclass(frozen=True)
class PicturesAlone:
    """No maps, and why."""

    about: str
    version: str = "pictures alone"

    def of(self, item: Item, objects: Sequence[str]) -> dict[str, Any]:
        """Return the item's pictures."""
        return {"views": [{"picture": picture} for picture in item.pictures()]}


@dataclass(frozen=True)
class Maps:
    """Maps of a model in this process.

    Args:
        asker: the guarded model with its processor.
        matcher: who makes the map.
        decoder: whose local view is shown; None: no method of the run cuts one.
    """

    asker: Asker
    matcher: Matcher
    decoder: Decoder | None

    @property
    def about(self) -> str:
        """What the maps are, in a sentence."""
        if self.decoder is None:
            return (
                "Relevance: which parts of the picture the matcher finds relevant to the question; no method of this "
                "run cuts a view from it."
            )
        return (
            "Relevance: which parts of the picture the matcher finds relevant to the question; bright is relevant. "
            f"The pale line bounds what {self.decoder.name} keeps in its local view, black elsewhere."
        )

    @property
    def version(self) -> str:
        """What decides the maps beside the item."""
        knobs = sorted(self.decoder.knobs.items(), key=str) if self.decoder else []
        return f"{self.matcher.version} {self.decoder.name if self.decoder else ''} {knobs}"

    def of(self, item: Item, objects: Sequence[str]) -> dict[str, Any]:
        """Return the item's pictures, each with its map, and what the matcher says of the claims.

        Raises:
            GuardError: the picture or the question can't be used.
        """
        # sums depend on what is computed together: what the run remembers could differ in the last bit
        self.matcher.forget()
        views = [self._shown(view) for view in self._looked(item)]
        found: dict[str, Any] = {"views": views}
        claims = _claims(item, objects)
        if not views or not claims:
            return found
        image = item.pictures()[0]
        try:
            shares = self.matcher.support(image, list(claims)).tolist()
        except UnsupportedCallError:  # a matcher of maps alone
            return found
        found["support"] = [
            {"claim": claim, "object": name, "probability": round(float(share), 4)}
            for (claim, name), share in zip(claims.items(), shares, strict=True)
        ]
        if objects:
            (match,) = self.matcher([image], [next(iter(claims))])
            views[0] |= {"sought": objects[0], "sought_map": overlay(image, match.relevance)}
        return found

    def _looked(self, item: Item) -> list[Any]:
        """Return the item's views as the method sees them, matched."""
        from lvlm_guard.evals.infer.generate import prepare

        inputs = prepare(self.asker.processor, [item])
        pictures = inputs["guard_views"]
        if self.decoder is None or self.decoder.guard is None:
            views = pictures.views()
            matches = self.matcher([view.image for view in views], [view.text for view in views])
            for view, match in zip(views, matches, strict=True):
                view.match = match
            return list(views)
        import torch

        model = self.asker.model
        with torch.inference_mode():
            # "batched" makes the local view even where the first token would not need it
            model.generate(
                **inputs.to(model.device, model.dtype),
                **PLAIN,
                guard=self.decoder.guard(0),
                guard_execution="batched",
                max_new_tokens=1,
            )
        return list(pictures.views())

    def _shown(self, view: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {"picture": view.image, "text": view.text}
        if view.match is None:
            return shown
        keep = view.match.keep if view.local is not None else None
        shown["map"] = overlay(view.image, view.match.relevance, keep=keep)
        if view.local is not None:
            # "squashed" views are squares: shown in the picture's shape, they can be compared with it
            shown["local"] = view.local if view.local.size == view.image.size else view.local.resize(view.image.size)
            shown["kept"] = round(float(view.match.keep.float().mean()), 4)
        if view.match.note:
            shown["note"] = view.match.note
        return shown


def maps_of(answerer: Answerer) -> Maps | PicturesAlone:
    """Return who makes the maps of an answerer."""
    from lvlm_guard.evals.infer.generate import Asker

    if not isinstance(answerer, Asker):
        return PicturesAlone("The answers came from a server, which gives no relevance maps: pictures stand alone.")
    decoder = next((d for d in answerer.decoders.values() if _cuts_a_view(d)), None)
    matcher = answerer.matcher or next(iter(answerer.matchers.values()), None)
    if decoder is not None:
        matcher = _own_matcher(decoder, answerer) or matcher
    if matcher is None:
        return PicturesAlone("No method of this run asks a matcher, so there are no relevance maps.")
    return Maps(answerer, matcher, decoder)


def _cuts_a_view(decoder: Decoder) -> bool:
    if decoder.guard is None or decoder.role != "method":
        return False
    method = decoder.guard(0)
    return hasattr(method, "matcher") and bool(method.branches())


def _own_matcher(decoder: Decoder, asker: Asker) -> Matcher | None:
    from lvlm_guard.matching import load_matcher

    assert decoder.guard is not None
    spec = decoder.guard(0).matcher
    return None if spec is None and asker.matcher is not None else load_matcher(spec, model=asker.model)


def _claims(item: Item, objects: Sequence[str]) -> dict[str, str]:
    """Return what the matcher is asked: claim -> the object it is about; a yes/no question is about none."""
    from lvlm_guard.matching.questions import yes_no_claim
    from lvlm_guard.methods.vote import Vote, claim_about

    question = item.question or item.prompt
    if objects:
        return {claim_about(name, Vote.template): name for name in objects}
    return {question: ""} if yes_no_claim(question) else {}
