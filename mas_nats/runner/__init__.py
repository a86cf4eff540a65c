"""Runs the agents of a manifest, each instance as a process of its own: ``mas run``.

Data goes one way::

    mas.yaml -> plan -> examination -> keeper (one an instance) -> child -> instance
                                          |                          |
                                          +------- printing <--------+  lines and events

``plan`` says what is to be run, ``where`` with which broker and certificate, ``examination`` whether the
classes can be used. A ``keeper`` starts its instance again when it crashes; ``instance`` is the program of
its process. The package knows nothing of the policy service.
"""
