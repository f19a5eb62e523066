"""`lvlm-guard serve`: one command that starts vLLM with the guards, checks that they act, and watches over all of it.

- `server`, `checking`, `parts`: start, check, open, watch, stop; what a user may say.
- `refused`: the guards that a model is served with, and options that would break them.
- `passed`: vLLM's own options, as the user wrote them.    - `checkpoint`: what a model's files say.
- `command`: vLLM's command line and environment.
- `installed`: whether vLLM is here, and the release that the twins were tested with.
- `engine`: the process that runs vLLM.    - `respawned`: front and matcher service, started again when they die.
- `child`: a process with all that it starts.    - `keeper`: ends them when this command was killed.
- `canary`, `questions`: whether the guards act.
"""
