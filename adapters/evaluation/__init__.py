"""How well adapters do beside what they must beat, on held-out pictures, with intervals.

- `metrics`: figures, intervals, the one table of all, and which weights are kept; `gallery`: what retrieval and claims
  are measured on; `retrieval`: recall among hard negatives, the verifier.
- `ranking`: order, error and counts; zero-shot CLIP and a linear probe beside.
"""
