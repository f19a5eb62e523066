"""`dual-prompt`: a CLIP with DCAR's dual prompts as matcher; what `lvlm-guard train dual-prompt` writes."""

from __future__ import annotations

from lvlm_guard.adapters.matchers.clip import ClipMatcher


class DualPromptMatcher(ClipMatcher):
    """As `ClipMatcher`, on a trained retriever; any CLIP's folder that is none is matched untuned.

    The maps and cosines are without word weights, which would need a text pass for each pair.
    """

    name = "dual-prompt"
    otherwise = None
