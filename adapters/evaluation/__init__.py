"""How well adapters do beside what they must beat, on held-out pictures, with intervals.

- `bootstrap`: 95 % intervals over pictures and trainings.
- `retrieval`: recall both ways among hard negatives, and the verifier; beside zero-shot CLIP, CoOp and MaPLe.
- `ranking`: order, error and counts; beside zero-shot CLIP and a linear probe.
- `told`: the rows, as JSON and as a table that says where the adapter does not win.
"""
