"""Training the adapters: one loop, and what the dual prompts and the ranker each learn by.

- `recipe`: what decides a training, what is asked of a thing to train, what it leaves on disk; `trainer`: the loop.
- `tasks`: a task trained from nothing or from where it stopped. `retrieval`, `ranking`: what is trained.
- `dual_prompt`, `ranker`: a training from its data to its adapter; `free`: without gradients.
- `runs`: those of a command; `curves`: as a page.
"""
