"""The embedded default: a real nats-server, a real Redis and the policy service, from one folder.

``layout`` names the files, ``nats_server`` and ``redis_server`` run the two servers, ``supervisor`` brings
everything up and down, ``durability`` checks what "accepted" rests on.
"""
