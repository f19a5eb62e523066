"""The adapters that the embedded model comes with, trained on the embedded world by the commands in their reports.

`load_adapter("embedded-dual-prompt")` and `load_adapter("embedded-ranker")` load them; "embedded-clip" is the tiny CLIP
as it is, calibrated.
"""

from pathlib import Path

ADAPTERS = Path(__file__).parent

__all__ = ["ADAPTERS"]
