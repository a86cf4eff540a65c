"""Traces and metrics of the policy workers, and the port on which a worker shows how it is.

``watching`` is what the rest of the service sees of it; nothing of it exists while telemetry is off.
"""
