"""``qwendet serve``: a model behind HTTP, with one page to try it.

request ─► gate (token, size, time) ─► app (fields) ─► batcher (a bounded queue) ─► answers (model)
"""
