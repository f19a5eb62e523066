"""DCAR's retrieval (arXiv:2508.04028): a CLIP that tells categories and attributes apart, and how well it does.

`model` reads captions and weighs their words, `retriever` takes pictures and words, `folder` holds both on disk;
`bank`, `claims` and `swaps` are about captions in which a category or an attribute is exchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_guard.registry import late

if TYPE_CHECKING:
    from lvlm_guard.adapters.retrieval.bank import WordBank as WordBank
    from lvlm_guard.adapters.retrieval.folder import RetrieverCard as RetrieverCard
    from lvlm_guard.adapters.retrieval.folder import make as make
    from lvlm_guard.adapters.retrieval.model import RetrievalModel as RetrievalModel
    from lvlm_guard.adapters.retrieval.model import caption_inputs as caption_inputs
    from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever as DualPromptRetriever
    from lvlm_guard.adapters.retrieval.swaps import Swap as Swap
    from lvlm_guard.adapters.retrieval.swaps import hard_negatives as hard_negatives
    from lvlm_guard.adapters.retrieval.swaps import swaps_of as swaps_of

__getattr__, __dir__ = late(__name__)
