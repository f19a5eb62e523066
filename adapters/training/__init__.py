"""Training the adapters: one loop, and what the dual prompts and the ranker each learn by.

- `recipe`: what decides a training, what is asked of a thing to train, what it leaves on disk; `trainer`: the loop.
- `features`: what a frozen tower makes of pictures, computed once. `retrieval` and `ranking`: what is trained.
- `dual_prompt`, `ranker`: a training from its data to its adapter. `runs`: those of a command; `curves`: as a page.

Batch n depends on the seed and n alone and every step seeds what it draws, so a training that was killed ends in the
weights of one that was not.
"""
