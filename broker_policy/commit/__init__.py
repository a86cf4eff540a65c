"""Committing decisions and messages to the one log (DESIGN 5, group commit).

Each worker has three lanes for each namespace, each with a record writer of its own: ``inbox`` for
messages, ``slow`` for messages whose sender or target recently made a batch fail, and ``acts`` for what
goes elsewhere (replies, state). No lane waits for another.
"""
