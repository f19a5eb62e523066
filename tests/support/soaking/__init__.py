"""Mixed traffic for a long time, every answer compared with transformers' `generate()`.

    PYTHONPATH=tests/support .venv-serve/bin/python -m soaking --seconds 600        (make soak)

`soak` asks and compares, `pool` and `reference` make what is asked and what has to be said, `endpoint` and `proof` are
the client, `processes` watches memory.
"""
