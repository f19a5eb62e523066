"""How the embedded models are trained, beside the package: nobody who installs it needs this.

Run in a checkout, at its root. `python -m embedded_training` (or `make train-embedded`) trains the LLaVA and the
BLIP-ITM of `lvlm_guard.embedded`, `python -m embedded_training.export` writes their folders, `python -m
embedded_training.clip` trains the CLIP of `lvlm_guard/adapters/clip`. `embedded_training.accept` holds them
against the figures that they must have; the CLIP's measure is `embedded_training.clip_accept`.

- `build`: the untrained models, their tokenizers and processors.
- `annotator`: whose bias the LVLM learns; `labels`: what pictures with holes show; `stored`: files, made again.
- `loop`: optimiser, schedule, progress, and a state file that survives a kill; `towers`: the first stage of all.
- `pointing`, `memory`, `overhead`: where matchers' maps point, what the pair head holds, what the trainer costs.
- `llava`, `blip`, `clip` with `clip_parts` and `clip_seen`: a model each; `segments`: many short texts about one
  picture in a row.
"""
