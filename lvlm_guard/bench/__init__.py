"""What a guard costs: guarded over plain `generate()`, interleaved in one run, nothing hidden.

How it is measured:

- One repetition is a block of calls. Its pictures go to every arm (plain, each method, each execution),
  one call after the other; the order turns around from call to call (ABC, CBA, ...), so that a machine that
  speeds up or slows down hits all arms alike.
- Every call of every arm sees a picture that no call saw before (the same scene, with one corner pixel
  stamped), so that no cache of the matcher hides what a mask costs.
- A block's times are summed, guarded over plain is one ratio a block, and the value is the median over
  blocks with a 95 % bootstrap interval. Blocks rather than calls, because most yes/no questions are
  decided without the second view: a median over calls would show their cost alone.
- The plain arm is plain: model and processor without a guard. Each guarded one has copies that share the weights and
  are guarded once, as a user's are. `time_ratio` is of `generate()`, `token_time_ratio` of its time a new token (a
  method that says more takes longer), `request_ratio` counts the processor too.
- Counts of forwards and masks come from other calls of the same kind: a timed call keeps no trace. So do the shares of
  a guarded call's time that go to the matcher (`matcher_share`), and to what other branches read by themselves: the
  second picture, the prompt, what they have skipped (`reading_share`). Both are work that a method asks for.

- `workloads`: what is asked: captions and yes/no questions, of the embedded world or of a folder's pictures.
- `shapes`: random models of real proportions (`--shape 1b`).
- `measure`: `Bench`, the arms and their order.
- `peers`: another package's methods beside ours (`--peers`).
- `server`: a running server's names, by vLLM's own benchmark (`--server`).
- `intervals`, `memory`, `clock`: the arithmetic, the peak of memory, and where time goes.
"""
