"""Delayed messages: held in a stream that only workers reach, released when they are due (ADR 16).

``stream`` holds them, ``claims`` decides between a release and a cancellation, ``lease`` says which worker
releases, ``feed`` tells it what waits, ``queue`` says what is next, ``releaser`` does it.
"""
