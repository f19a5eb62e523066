"""How the embedded models are trained, beside the package: nobody who installs it needs this.

Run in a checkout, at its root. `python -m embedded_training` (or `make train-embedded`) trains the LLaVA and the
BLIP-ITM of `lvlm_guard.embedded`, `python -m embedded_training.export` writes their folders, `python -m
embedded_training.clip` trains the CLIP of `lvlm_guard.adapters.clip`. What they are measured by is in the package:
`lvlm_guard.embedded.accept`, `lvlm_guard.adapters.clip.accept`.

- `loop`: optimiser, schedule, progress, and a state file that survives a kill; `towers`: the first stage of all.
- `llava`, `blip`, `clip`: a model each; `segments`: many short texts about one picture in a row.
"""
