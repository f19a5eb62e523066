"""The matcher service: masks for AGLA and scores for `vote`, from one matcher that many servers share.

    python -m lvlm_guard.serve.maskd --model embedded --port 8201

    POST /mask    {"image": base64, "question": text}      -> {"mask", "version"}
    POST /scores  {"image": base64, "claims": [text, ...]} -> {"scores", "version"}
                  {"image": base64, "question": text}: what `vote` may ask about an answer to this question
    GET  /health  {"status", "version", ...}
    GET  /metrics Prometheus

`mask` and `scores` are texts that `lvlm_guard.serve.wire` reads.

- `asks`: what can be asked.    - `batcher`: the bounded queue, batches, deadlines.
- `matching`: from picture files to texts, by the matcher, in the worker thread.
- `bodies`: a request's body, read within limits.    - `app`: routes.    - `metrics`
- `run`: processes and sockets.    - `client`: for servers that ask.
"""
