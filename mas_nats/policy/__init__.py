"""What a policy says, and how a call is judged under it: no server, no connection, no store.

The policy service decides with it, and so does the in-memory broker of ``mas_nats.testing``; an agent imports
none of it. ``document`` is what is declared, ``table`` the same for looking things up; ``call`` is what is
judged, ``shape`` and ``authorize`` are steps of the pipeline, ``refusals`` are those that no step makes.
"""
