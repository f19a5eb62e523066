"""The embedded tiny CLIP: a real `CLIPModel` with processor, trained on the embedded world in minutes.

`TINY` is its folder; `CLIPModel.from_pretrained(TINY)` and `CLIPProcessor.from_pretrained(TINY)` load it. It knows
objects well, colours and numbers weakly, and hardly which colour belongs to which object, as CLIP does: that is the
room adapters have. `python -m embedded_training.clip` trains it again from nothing,
`python -m embedded_training.clip_accept` measures it.
"""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"

__all__ = ["TINY"]
