"""The evaluation room: what a guard is worth, measured so that the number can be trusted.

Charter: the published scorers (POPE, CHAIR, MME) to the last digit and their corrected readings; the
statistics of paired runs; the tasks and runs, on the embedded world, on real data and against servers; their
reports. It may import the core of `lvlm_guard`; the core never imports it, and adapters are named, not
imported. Scorers, comparisons and reports import neither torch nor transformers nor lmms-eval, so saved runs
can be compared anywhere; lmms-eval is needed for its own tasks and the plug-in alone.

A run is three steps over one table of answers: ask -> score -> report. Read in this order:

- `spec/`: what decides a run (`settings`), what is asked (`items`), the table that all steps share (`answers`), how
  JSON lines are read (`jsonl`).
- `tasks/`: the questions, a folder or file a benchmark.
- `decoders/`: what is compared, with which controls; how draws are seeded and questions scored.
- `infer/`: asking. `ask` is the step, `record` what a run is, `store` the answers on disk, `ranks` processes that share
  them, `generate` a model in this process, `server/` an OpenAI-compatible endpoint.
- `metrics/`, `stats/`: scoring. Counts of each answer; the bootstrap over pictures, results, verdicts, void runs.
- `report/`: the terminal's tables, the page, comparing two runs, checking one.
- `foreign/`: anyone's files of answers as the same table.
- `studies/`: a paper's grid, verifiers, the demo. `lmms/`: the plug-in for lmms-eval. `commands/`: `lvlm-guard eval`.
"""

if __name__ != "lvlm_guard.evals":
    raise ImportError("import lvlm_guard.evals, not evals: two copies of its classes would exist")
