"""What adapters train on: facts about pictures, from wherever they lie, read strictly or refused.

- `facts`: the record, a picture a line: captions, objects, attributes, split; unknown is never false.
- `read`: one door to files of them, the embedded world, shards, folders and the hub; `__main__`: published layouts.
- `dataset`: facts with the store of their pictures, parted in three and checked, and the captions and values in them.

Pictures are read one by one, by `lvlm_guard.images.load_image`; one that can't be read is refused, or skipped and
counted (`on_bad`).
"""

from lvlm_guard.adapters.data.dataset import CaptionData, FactsData, RankData
from lvlm_guard.adapters.data.facts import CaptionRow, Facts, RankRow
from lvlm_guard.adapters.data.pictures import Bad
from lvlm_guard.adapters.data.read import open_facts

__all__ = ["Bad", "CaptionData", "CaptionRow", "Facts", "FactsData", "RankData", "RankRow", "open_facts"]
