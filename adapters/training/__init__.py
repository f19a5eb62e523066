"""Training the adapters: one loop, and what the dual prompts and the ranker each learn by.

- `recipe`: what decides a training, how a command asks, what is left on disk; `trainer`: the loop.
- `pairs`, `retrieval`: what a retriever learns by; `dual_prompt`, `ranker`: from data to adapter; `free`: no gradients.
- `commands`: `lvlm-guard train claims`, `dual-prompt`, `ranker`; `runs`: the trainings of a command, compared.
"""
