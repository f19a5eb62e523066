"""Anyone's answers: files of ours, of lmms-eval, VLMEvalKit, OPERA, PAI and AGLA, scored with no model in sight.

- `formats`: the rows of a file, whatever holds them, whose file it is, and what each field means.
- `gathered`: answers of several decoders, joined with their questions, as one table, and what can't be scored of it.
- `score`: what each task reads of files, and the results that `lvlm_guard.evals.stats` gives of a run.
"""
