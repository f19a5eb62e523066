"""The evaluation room: what a guard is worth, measured so that the number can be trusted.

Charter: the published scorers (POPE, CHAIR, MME) to the last digit and their corrected readings; the
statistics of paired runs; the tasks and runs, on the embedded world, on real data and against servers; their
reports. It may import the core of `lvlm_guard`; the core never imports it, and adapters are named, not
imported. Scorers, comparisons and reports import neither torch nor transformers nor lmms-eval, so saved runs
can be compared anywhere; lmms-eval is needed for its own tasks, the plug-in and servers alone.

Read in this order:

- `items`, `settings`, `tasks/`: what is asked, and what decides a run; `world`, `pope_questions` make questions.
- `decoders`, `controls`, `sampling`: what is compared, with what, and how draws are seeded.
- `asking`, `answers`, `crew`, `worker`, `threads`, `prepared`, `run`, `folder`: asking resumably, alone or in several
  processes.
- `pope`, `chair`, `mme`: scores and readings; `objects`, `tokens`, `singular`: how captions are read.
- `statistics`, `rows`, `kinds`, `scoring`, `costs`, `void`: from answers to results, or to a void run.
- `saved`, `provenance`: runs on disk, and where a figure comes from.
- `table`, `fitted`, `figures`, `remarks`: results on a terminal and in words; `page/`, `evidence`, `maps`,
  `disagreement`: the report.
- `compare/`, `check/`: two runs against each other; a folder against its own answers.
- `lmms/`: the plug-in for lmms-eval; `server/`: OpenAI-compatible endpoints.
- `verifying/`: verifiers of named objects, beside what they must beat.
- `foreign/`: anyone's files of answers, scored as a run is: start at its `formats`.
- `reproduce/`: a paper's grid; `demo/`: the default run told as a story; `overhead`: what the harness costs.
"""

if __name__ != "lvlm_guard.evals":
    raise ImportError("import lvlm_guard.evals, not evals: two copies of its classes would exist")
