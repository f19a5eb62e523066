"""The front: what stands between the network and vLLM's own app, and alone may ask for a guard.

`GuardFront` (middleware.py) is put around vLLM's app. For a chat it checks the key, reads the body (requests.py),
resolves each picture once (pictures.py, fetching.py, addresses.py), gets the mask or the scores from the matcher
service (guards.py), and says in header and body which guard ran (answers.py). Every other way in is closed.
"""
