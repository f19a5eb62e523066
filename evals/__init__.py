"""The evaluation room: what a guard is worth, measured so that the number can be trusted.

Charter: the published scorers (POPE, CHAIR) to the last digit and their corrected readings; the
statistics of paired runs; the tasks and runs, on the embedded world and on real data, and their
pages. It may import the core of `lvlm_guard`; the core never imports it, and adapters are named, not
imported. Scorers import neither torch nor transformers, so saved runs can be compared anywhere.

Read in this order:

- `pope`, `pope_questions`: scores and readings of yes/no answers; question files, and building them.
- `chair`, `objects`, `tokens`, `singular`: hallucinated objects of captions, and how captions are read.
- `statistics`, `rows`: intervals and tests over pictures; result rows in long form.
- `world`: questions and captions of the embedded world, with their right answers.
- `decoders`, `controls`, `answers`: what is compared, with what, and asking it resumably.
- `demo`: all of it in one table; `demo_tasks`, `demo_table`, `demo_examples`, `demo_page` are its parts.
"""

if __name__ != "lvlm_guard.evals":
    raise ImportError("import lvlm_guard.evals, not evals: two copies of its classes would exist")
