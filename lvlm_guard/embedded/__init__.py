"""The embedded world and its two trained models: what lvlm-guard runs on when nothing can be downloaded.

`MODEL` is a folder with a tiny LLaVA that hallucinates objects which usually appear together; `MATCHER` one with a
tiny BLIP-ITM. Both load by plain `from_pretrained`. `lvlm_guard.embedded.world` draws their scenes,
`python -m embedded_training` trains them again from nothing, `embedded_training.accept` measures them.
Nothing here knows of methods, and no decoder knows of this world.
"""

from pathlib import Path

EMBEDDED = "embedded"
"""What a command or a setting says for them, where others have a folder or a hub id."""
MODEL = Path(__file__).parent / "llava"
MATCHER = Path(__file__).parent / "blip"

__all__ = ["EMBEDDED", "MATCHER", "MODEL"]
