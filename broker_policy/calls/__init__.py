"""What agents may ask, one file a kind of call, and what these share.

``messages`` (send, request) decides for the inbox lanes. ``replies`` and ``state`` go through ``acting``: the
record first, then the act, then the answer. ``presence`` (hello, bye, discover) and failure reports run
``asides``: nothing is decided. ``deciding`` says under which policy, and writes the line of each decision.
"""
