"""The ranking-aware adapter: a CLIP that orders pictures by how much of something they show, and can say "none".

Source: Yu et al., "Ranking-aware adapter for text-driven image ordering with CLIP", ICLR 2025, arXiv:2412.06760, and
its release. What differs from the release, and why, stands where it differs. Read in this order:

- `settings`: sizes, and a switch for each repair of the release.
- `attention`, `fusion`, `readout`, `pair_head`: the parts; `network` puts them together, from tokens to scores.
- `trunk`: what the network needs of a CLIP, for ViT and ConvNeXt towers; `model`: `ClipRanker`, trunk and network.
- `losses`, `metrics`, `calibration`, `groups`: what training and evaluation need.
- `adapter`, `card`, `backbone`: as a PEFT adapter on disk. `ranker`: `Ranker`, which takes pictures and words.
- `open_clip`: converts ConvNeXt CLIPs of open_clip into a model of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_guard.late import late

if TYPE_CHECKING:
    from lvlm_guard.adapters.ranker.adapter import adapted as adapted
    from lvlm_guard.adapters.ranker.adapter import lora_config as lora_config
    from lvlm_guard.adapters.ranker.card import RankerCard as RankerCard
    from lvlm_guard.adapters.ranker.model import ClipRanker as ClipRanker
    from lvlm_guard.adapters.ranker.ranker import Ranker as Ranker
    from lvlm_guard.adapters.ranker.settings import RankerSettings as RankerSettings

__getattr__, __dir__ = late(__name__)
