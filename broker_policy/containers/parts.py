"""Which files each container gets of an installation, and no others.

An installation is made in one folder, as ``mas up`` has it (``embedded/layout.py``). A part is the folder of
one holder: the same places with only that holder's files, in a volume of its own, which is mounted where the
whole folder would be. So every program finds its files where it always does, and nothing else is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker_policy.embedded.layout import Layout
from broker_policy.identity.private_files import private_folder, write_private
from broker_policy.tenants.material import PublicMaterial, SignerKeys
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, Role, require_id

NODES = ("nats", "nats-2", "nats-3")
"""The nats-servers, as their containers are called."""
REDIS = "redis"
METRICS_TOKEN = "prometheus/token"  # noqa: S105 - where it is
"""What Prometheus shows to the workers."""
GRAFANA_PASSWORD = "grafana/password"  # noqa: S105 - where it is
"""The password of Grafana's administrator."""
AGENT = "agent-"
"""What the name of an agent's part begins with."""

_BROKER = ("endpoint.json", "certs/ca.pem")
_CHECKPOINT_KEY = f"keys/signer/{SignerKeys.FILE}"
_POLICY = (*_BROKER, "keys/public/*", "redis/password")


@dataclass(frozen=True, slots=True)
class Part:
    """What one container gets: patterns below the folder of the installation, and folders to be there.

    Once it has them, the files of ``keeps`` are its own: they are taken back from it, never replaced.
    """

    name: str
    files: tuple[str, ...]
    folders: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


def part(name: str) -> Part:
    """The part of this name.

    Raises:
        ConfigurationError: there is none.

    """
    if name in NODES:
        server = ("certs/ca.pem", "certs/server.pem", "certs/server.key")
        route = ("certs/routes/ca.pem", f"certs/routes/{name}.pem", f"certs/routes/{name}.key")
        return Part(name, (f"{name}/nats-server.conf", *server, *route))
    if name.startswith(AGENT):
        agent = require_id(name.removeprefix(AGENT), "agent id")
        return Part(name, (*_BROKER, *_certificate(Role.AGENT, agent)))
    if name in _PARTS:
        return _PARTS[name]
    raise ConfigurationError(
        f"there is no part {name!r}: known are {', '.join((*NODES, *_PARTS))} and {AGENT}<agent id>"
    )


def _certificate(role: Role, name: str) -> tuple[str, str]:
    stem = f"certs/{DEFAULT_NAMESPACE}/{role}/{name}"
    return f"{stem}.pem", f"{stem}.key"


_PARTS = {
    each.name: each
    for each in (
        Part(REDIS, ("redis/redis.conf", "redis/password")),
        Part("prometheus", (METRICS_TOKEN,)),
        Part("grafana", (GRAFANA_PASSWORD,)),
        Part(
            "worker",
            (*_POLICY, "keys/worker/*", *_certificate(Role.POLICY, "worker"), "telemetry.json"),
            ("run",),
        ),
        Part(
            "signer",
            (*_POLICY, "keys/signer/*", *_certificate(Role.POLICY, "signer")),
            ("run",),
            # It changes over by itself when its key is rotated.
            (_CHECKPOINT_KEY, "keys/public/checkpoint.pub", f"keys/public/{PublicMaterial.HISTORY}"),
        ),
        Part(
            "controller",
            (
                *_POLICY,
                "redis/reader-password",
                # Not operator.nk: nobody needs it in operation.
                "keys/controller/operator-signing.nk",
                "keys/controller/accounts.key",
                "keys/controller/sys-signing.nk",
                *_certificate(Role.POLICY, "controller"),
            ),
        ),
    )
}


def agents(parts: Iterable[Path]) -> list[str]:
    """The agents that have a part."""
    return sorted(each.name.removeprefix(AGENT) for each in parts if each.name.startswith(AGENT))


def hand_out(layout: Layout, folder: Path) -> int:
    """Bring the part in ``folder``, named as it is, to what the installation has; how many files changed.

    A file that the installation no longer has is removed.

    Raises:
        ConfigurationError: there is no such part.

    """
    wanted = part(folder.name)
    _take_back(layout, folder, wanted)
    found = {
        path.relative_to(layout.root): path
        for pattern in wanted.files
        for path in layout.root.glob(pattern)
        if path.is_file() and not path.name.startswith(".")
    }
    kept = {Path(each) for each in wanted.keeps}
    changed = 0
    for place, source in found.items():
        target = folder / place
        if not target.exists() or (place not in kept and target.read_bytes() != source.read_bytes()):
            private_folder(target.parent)
            write_private(target, source.read_bytes())
            changed += 1
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        place = path.relative_to(folder)
        if place not in found and place not in kept and not path.name.startswith("."):
            path.unlink()
            changed += 1
    for name in wanted.folders:
        private_folder(folder / name)
    return changed


def _take_back(layout: Layout, folder: Path, wanted: Part) -> None:
    """What the holder has changed of its own."""
    for place in wanted.keeps:
        own, ours = folder / place, layout.root / place
        if own.exists() and (not ours.exists() or ours.read_bytes() != own.read_bytes()):
            write_private(ours, own.read_bytes())
    following = layout.keys / "signer" / SignerKeys.NEXT
    key = folder / _CHECKPOINT_KEY
    if key.exists() and following.exists() and following.read_bytes() == key.read_bytes():
        following.unlink()  # the signer has taken it
