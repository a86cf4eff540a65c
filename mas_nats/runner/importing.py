"""The process in which the classes of a manifest are imported and looked at.

``python -m mas_nats.runner.importing NAME DESCRIPTOR``, what to look at on standard input. It tells, in a
JSON line each, ``{"begun": class_path}`` and what does not fit. It imports little itself, so that a module
beside the manifest is found under whatever name it has.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mas_nats.errors import ConfigurationError
from mas_nats.runner import class_paths


def main() -> None:
    """Look at each class and tell what does not fit."""
    descriptor = int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only argument

    def tell(**what: Any) -> None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")

    order = json.load(sys.stdin)
    class_paths.import_from(Path(order["folder"]))
    for agent in order["agents"]:
        tell(begun=agent["class_path"])
        try:
            cls = class_paths.load(agent["class_path"])
        except ConfigurationError as error:
            tell(agent_id=agent["agent_id"], field=["class_path"], text=str(error))
            continue
        for each in class_paths.misfits(cls, agent["given"], agent["init_kwargs"]):
            tell(agent_id=agent["agent_id"], field=each.field, text=each.text)
    sys.stdout.flush()
    os._exit(0)  # threads that a module has started are not waited for


if __name__ == "__main__":
    main()
