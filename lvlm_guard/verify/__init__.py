"""Checks of a finished answer against its picture: is each object that it names there?

- `verdict`: what a matcher's figures say of one claim (adapters.md 4.3: counterfactual swaps).
- `check`: which objects a text names; one claim, a whole answer, the answers of a call.
- `ranking`: the best of several answers, by the model's own probability and the matcher (4.5).

`generate(..., verify=True)` and `lvlm-guard generate --verify` use them. Nothing here changes an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_guard.registry import late

if TYPE_CHECKING:
    from lvlm_guard.verify.check import Checked as Checked
    from lvlm_guard.verify.check import Mention as Mention
    from lvlm_guard.verify.check import Verifier as Verifier
    from lvlm_guard.verify.check import mentions as mentions
    from lvlm_guard.verify.check import verify as verify
    from lvlm_guard.verify.check import verify_answer as verify_answer
    from lvlm_guard.verify.ranking import Candidate as Candidate
    from lvlm_guard.verify.ranking import ranked as ranked
    from lvlm_guard.verify.ranking import rerank as rerank
    from lvlm_guard.verify.verdict import Thresholds as Thresholds
    from lvlm_guard.verify.verdict import Verdict as Verdict

__getattr__, __dir__ = late(__name__)
