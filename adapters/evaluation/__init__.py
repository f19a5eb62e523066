"""How well adapters do beside what they must beat, on held-out pictures, with intervals.

- `metrics`: figures, and which weights are kept by them; `table`: intervals, and the one table of all.
- `gallery`: what retrieval and claims are measured on; `retrieval`: recall among hard negatives, the verifier.
- `ranking`: order, error and counts; zero-shot CLIP and a linear probe beside.
"""
