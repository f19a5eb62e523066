"""The playground: one page in the browser that shows what the guards do to an answer.

Charter: ask one picture the same thing under two or three methods, and see side by side what was said, which tokens
were overruled, where the matcher looked and what it cost. It may import the core of `lvlm_guard`; the core never
imports it. Only `page` and `app` need gradio (the extra `play`). What is drawn comes from `lvlm_guard.report`.

Read in this order:

- `backend`: what the page asks: a model in this process (`local`), a running `lvlm-guard serve` (`remote`).
- `judging`: where a matcher looks, and what it holds of the objects that an answer names.
- `pictures`: what a browser sends, within the limits; the pictures to begin with.
- `drawing`: answers, verdicts and maps as markup. `snippet`: the same as a Python script.
- `page`: the page, and what happens on it. `app`: the page as a server that keeps nothing and calls nobody.
"""

if __name__ != "lvlm_guard.play":
    raise ImportError("import lvlm_guard.play, not play: two copies of its classes would exist")
