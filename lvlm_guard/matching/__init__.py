"""Image-text matching: which pixels matter to a text, and how well a picture supports a claim.

A matcher answers two questions about a picture. `matcher(images, texts)` gives a relevance map and a
match score a pair (AGLA cuts its local view from them); `matcher.support(image, claims)` gives the
probability that each claim holds (`vote` asks for it). Read in this order:

- `match`: `Match`, `Matcher`, the local view.
- `relevance`: AGLA's arithmetic without any model: GradCAM, heat map, mask.
- `blip_reading`, `blip_itm`: how texts are prepared; the default matcher, on transformers' `BlipForImageTextRetrieval`.
- `attention`: the model's own attention, which `focus` may take instead of a matcher.
- `detector`, `open_detector`, `asking`: detectors of a set of labels, or of any phrase, and what a text asks of them.
- `combined`: several matchers as one ("detector+blip-itm"); any callable of the caller's own as a matcher.
- `loading`: from None, a name, a folder or a hub id to a matcher that the whole process shares.
- `vocabulary`, `claims`: which objects a half-written answer is about to name (no model, no torch).
- `voting`: what a call's matcher says of texts, and what its answers weigh, here and in serving.
- `memory`: bounded caches keyed by content.

Other packages bring matchers by the entry point `lvlm_guard.matchers`: a subclass of `Matcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_guard.registry import Registry, late

if TYPE_CHECKING:
    from lvlm_guard.matching.blip_itm import BlipITM as BlipITM
    from lvlm_guard.matching.claims import ClaimFinder as ClaimFinder
    from lvlm_guard.matching.loading import load_matcher as load_matcher
    from lvlm_guard.matching.match import Match as Match
    from lvlm_guard.matching.match import Matcher as Matcher
    from lvlm_guard.matching.match import local_view as local_view
    from lvlm_guard.matching.relevance import keep_mask as keep_mask
    from lvlm_guard.matching.vocabulary import Vocabulary as Vocabulary

REGISTRY = Registry(
    "matcher",
    "lvlm_guard.matchers",
    {
        "attention": "lvlm_guard.matching.attention:Attention",
        "blip-itm": "lvlm_guard.matching.blip_itm:BlipITM",
        "clip": "lvlm_guard.adapters.matchers.clip:ClipMatcher",
        "dual-prompt": "lvlm_guard.adapters.matchers.clip:DualPromptMatcher",
        "detector": "lvlm_guard.matching.detector:DetectorMatcher",
        "open-detector": "lvlm_guard.matching.open_detector:OpenDetector",
        "siglip": "lvlm_guard.adapters.matchers.clip:SiglipMatcher",
        "ranker": "lvlm_guard.adapters.matchers.ranker:RankerMatcher",
    },
)

__getattr__, __dir__ = late(__name__, present=["REGISTRY"])
