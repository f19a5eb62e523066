"""Distilling a guard: a LoRA that makes the plain model answer as the guarded one does, without its cost.

Three stages, each of which goes on where it stopped:

- `lessons`: what is asked and was answered; `teacher`: the guarded model answers about pictures without labels.
- `training`: a stock PEFT LoRA learns those answers, on transformers' Trainer; `rows` lays them out.
- `drift`: on pictures that were not used, how far the tuned model agrees with its teacher and what else it changed.

What comes out is a tuned model and is called so: nothing guards its answers any more. `run` does and
tells all of it for `command`, `lvlm-guard train distill`.
"""
