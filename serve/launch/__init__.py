"""`lvlm-guard serve`: one command that starts vLLM with the guards, checks that they act, and watches over all of it.

- `run`, `parts`, `server`, `checking`: start, check, open, watch, stop.    - `settings`: what a user may say.
- `guards`: which ones a model is served with.
- `passed`: vLLM's own options, as the user wrote them.    - `refused`: those that would break a guard.
- `checkpoint`: what a model's files say.    - `command`: vLLM's command line and environment.
- `installed`: whether vLLM is here, and the release that the twins were tested with.
- `engine`: the process that runs vLLM.    - `respawned`: front and matcher service, started again when they die.
- `child`: a process with all that it starts.    - `keeper`: ends them when this command was killed.
- `canary`, `questions`: whether the guards act.
"""
