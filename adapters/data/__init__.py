"""What adapters train on: captions and values of pictures, from wherever they lie, read strictly or refused.

Two kinds of rows, one JSON object a line (`rows`): captions for the dual prompts and the distillation, values for the
ranker. `open_captions` and `open_ranks` read them from a file, a folder, webdataset shards, a Hugging Face data set or
the embedded world; `python -m lvlm_guard.adapters.data` converts published layouts. Pictures are read one by one, by
`lvlm_guard.images.load_image`; one that can't be read is refused, or skipped and counted (`on_bad`).
The ranker's batches are drawn from `RankData.rows` by `lvlm_guard.adapters.ranker.groups.GroupSampler`.
"""

from lvlm_guard.adapters.data.captions import CaptionData, CaptionItem
from lvlm_guard.adapters.data.open import open_captions, open_ranks
from lvlm_guard.adapters.data.pictures import Bad, OnBad, Store, sift
from lvlm_guard.adapters.data.ranks import RankData, RankItem
from lvlm_guard.adapters.data.rows import CaptionRow, RankRow

__all__ = [
    "Bad",
    "CaptionData",
    "CaptionItem",
    "CaptionRow",
    "OnBad",
    "RankData",
    "RankItem",
    "RankRow",
    "Store",
    "open_captions",
    "open_ranks",
    "sift",
]
