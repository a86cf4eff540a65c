"""Traces and metrics of agents: off unless the application, or a setting, turns them on.

``choice`` says whether there are any, ``watching`` is what the rest of the SDK sees of them, ``off`` stands
for them in streams when there are none. Nothing here imports OpenTelemetry before it is known to be wanted.
"""
