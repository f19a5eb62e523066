"""What a running server costs and whether it stays right: speed, and hours of mixed traffic.

How speed is measured (`lvlm-guard bench --server URL`):

- An arm is a model name: plain, and each guarded one; with `--plain-server` also the same model on an ordinary vLLM.
  A block asks every arm the same questions, a fixed number of requests in flight (a closed loop), one arm after the
  other; from block to block the order turns round.
- Every request shows a picture that no request showed before (the same scene, with corner pixels stamped), so that
  neither the matcher's memory nor a prefix cache hides a cost. `--warm` asks about the same pictures again and again.
- Captions are of one length for all arms (`ignore_eos`), so that a guard that says less is not faster by it; answers to
  questions end where they end.
- Ratios are of one block's seconds, guarded over plain; the value is the median over blocks with a 95 % bootstrap
  interval. Intervals of times to the first token resample blocks, not requests.
- Every answer has to prove its guard in header and body; one that does not ends the run.

- `endpoint`, `proof`: the client, and what an answer says of its guard.
- `asking`: which questions; `bench`: arms, blocks, rows; `records`: the file that a run goes on from; `cost`: what
  specs/vllm.md allows.
- `soak`: mixed traffic against reference answers (`reference`), memory (`processes`) and caches watched.
"""
