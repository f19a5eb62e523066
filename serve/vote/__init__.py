"""`vote` as a logits processor over an unmodified model: no second branch, no second cache, no twin.

`ballot` reads what a request carries and says which claims a front must have scored; `counting` is the step, by
the algebra and the trie of `lvlm_guard.matching.voting`; `processor` ties it to vLLM's model runners, and is the
only one that needs vllm.
"""

from __future__ import annotations

PROCESSOR = "lvlm_guard.serve.vote.processor:VoteProcessor"
"""For vLLM's `--logits-processors`."""
