"""A family is proven, not listed: a model is tried once before it is guarded, and gets no more than was proven.

Read `trial.py` first, how a second branch is held against plain generate(); a `Proof` says what was found, and
`proofs.py` keeps them, with the table of model types, `proven.json`, that `tests/support/prove_families.py` writes.
"""
