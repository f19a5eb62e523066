"""The plug-in for lmms-eval: the model `lvlm_guard`, so that stock `lmms-eval` runs its tasks on any guarded model.

    lmms-eval --model lvlm_guard --model_args pretrained=ID,method=agla,alpha=2 --tasks pope_adv

lmms-eval finds the model by an entry point and is not patched. It imports `manifest` whenever it lists its
models, so this package imports nothing heavy by itself. Read in this order:

- `manifest`, `registered`: how lmms-eval finds the model, and why it sometimes does not.
- `model`: the model; `arguments`, `requests`, `generation`, `store` are what it reads and keeps.
- `tasks/`, `scoring`, `world_files`: the embedded world as tasks of lmms-eval, their scores, their data.
- `localize`: a stock task over files of one's own; `stock` finds it, `parquet` writes the rows.
"""

from __future__ import annotations

from pathlib import Path

NAME = "lvlm_guard"
"""What lmms-eval calls the model (`--model`)."""

TASKS = Path(__file__).parent / "tasks"
"""The folder for `--include_path` that holds `lvlm_guard_world_pope` and `lvlm_guard_world_chair`."""
