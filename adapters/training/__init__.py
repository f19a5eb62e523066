"""Training the adapters: one loop on accelerate, and what the dual prompts and the ranker each learn by.

- `recipe`: what decides a training; `loop`: the steps, resumed to the byte; `checkpoint`: what it leaves on disk.
- `features`: what a frozen tower makes of pictures, computed once.
- `task`: what the loop asks of a thing to train; `retrieval` and `ranking` answer.
- `runs`: a training from its data to its adapter; `curves`: its loss and figures as a page.

Batch n depends on the seed and n alone and every step seeds what it draws, so a training that was killed ends in the
weights of one that was not. On several GPUs under `accelerate launch` each process takes batches of its own.
"""
