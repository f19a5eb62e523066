"""How well adapters do beside what they must beat, on held-out pictures, with intervals.

- `metrics`: figures, and which weights are kept by them. `gallery`: what retrieval and claims are measured on.
- `retrieval`: intervals, recall both ways among hard negatives, the verifier; beside zero-shot CLIP and others.
- `ranking`: order, error and counts; beside zero-shot CLIP and a linear probe.
"""
