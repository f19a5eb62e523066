"""The ranking-aware adapter: a CLIP that orders pictures by how much of something they show, and can say "none".

Source: Yu et al., "Ranking-aware adapter for text-driven image ordering with CLIP", ICLR 2025, arXiv:2412.06760, and
its release. What differs from the release, and why, stands where it differs. Read in this order:

- `card`: sizes, a switch for each repair of the release, and what lies on disk.
- `network`: fusion, score head and pair head, from tokens to scores.
- `model`: `ClipRanker`, a CLIP's towers and the network, its loss, and both as a PEFT adapter.
- `ranker`: `Ranker`, which takes pictures and words.
"""
