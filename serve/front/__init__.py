"""The front: a proxy in processes of its own before an OpenAI-compatible engine.

`app` answers. For a chat it checks the key (`routes`), takes the body in (`receiving`), lets it be read in a process
that can be killed (`reading`: `requests`, `messages`, `fields`, `pictures`), has masks or scores made (`guards`), adds
them to what was rebuilt, and sends that to the engine (`upstream`), whose answer passes with its proof (`answers`).
Pictures at addresses are fetched by `fetching` (`places`). `settings` says how it is set up, `canary` when
guarded names open, `names` what they mean, `__main__` runs it.
"""
