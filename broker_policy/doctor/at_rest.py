"""What can be seen of an installation in its folder: files, modes, keys, certificates, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from broker_policy.commit.disk_room import Space
from broker_policy.doctor.check import Check, fail, ok, warn
from broker_policy.embedded.certify import torn
from broker_policy.embedded.layout import POLICY_HOLDERS, Broker, Layout
from broker_policy.tenants.material import ControllerKeys, Material, PublicMaterial
from mas_nats.errors import ConfigurationError, MasError

_SOON = timedelta(days=14)
_ROOM = 2 << 30
_SHOWN = 3
_SECRET = ("*.key", "*.nk", "password")


def look(layout: Layout, now: datetime | None = None) -> list[Check]:
    """Every check that needs no running broker."""
    if not layout.root.is_dir():
        return [
            fail("folder", f"{layout.root} does not exist", "Start a broker with mas up, or name --folder")
        ]
    checks = [modes(layout), keys(layout)]
    checks += certificates(layout, now or datetime.now(UTC))
    return [*checks, disk(layout)]


def modes(layout: Layout) -> Check:
    """Whether anybody but the owner may read a secret."""
    secret = {
        path
        for folder in (layout.keys, layout.certs, layout.authority, layout.route_authority, layout.redis)
        for pattern in _SECRET
        for path in folder.rglob(pattern)
    }
    open_ones = sorted(
        path for path in (layout.root, *secret) if path.exists() and path.stat().st_mode & 0o077
    )
    if open_ones:
        return fail(
            "file modes",
            f"others may read {_some(open_ones)}",
            f"chmod -R go= {layout.root}; where others could log in, rotate these keys (mas keys rotate)",
        )
    return ok("file modes", f"{len(secret)} secrets, readable by their owner only")


def keys(layout: Layout) -> Check:
    """Whether every key is there and can be read; in a container of the controller's, its own."""
    try:
        if _controllers_alone(layout):
            ControllerKeys.load(layout.keys)
            PublicMaterial.load(layout.keys)
        elif Material.load(layout.keys).worker.tokens is None:
            text = "token-signing is missing: sidecars get no tokens"
            return warn("keys", text, "mas keys rotate token-signing makes it, and so does the next mas up")
    except ConfigurationError as error:
        return fail("keys", str(error), "Restore the folder from a backup (mas restore)")
    return ok("keys", "complete")


def certificates(layout: Layout, now: datetime) -> list[Check]:
    """Whether certificates are valid, and for how long."""
    if _controllers_alone(layout):
        ours = {layout.ca, layout.policy_certificate("controller").cert}
    else:
        holders = (layout.policy_certificate(each).cert for each in POLICY_HOLDERS)
        ours = {layout.ca, layout.server_cert, *holders}
    checks = []
    soonest: tuple[timedelta, Path] | None = None
    for path in sorted(ours):
        left = _left(path, now)
        if left is None:
            checks.append(fail("certificates", f"{path} is missing or unreadable", _renew(layout, path)))
        elif left <= timedelta():
            checks.append(fail("certificates", f"{path} has expired", _renew(layout, path)))
        elif (begins := _begins(path)) > now:
            text = f"{path} is not valid before {begins.isoformat(timespec='minutes')}"
            checks.append(fail("certificates", text, "Set this machine's clock, or " + _renew(layout, path)))
        elif path != layout.ca and torn(path):
            text = f"{path} does not belong to the key beside it"
            checks.append(fail("certificates", text, "Start it again with mas up, which makes both anew"))
        elif left < _SOON:
            checks.append(warn("certificates", f"{path} expires in {_span(left)}", _renew(layout, path)))
        if left is not None and (soonest is None or left < soonest[0]):
            soonest = (left, path)
    if not checks and soonest is not None:
        checks.append(ok("certificates", f"the first expires in {_span(soonest[0])}: {soonest[1].name}"))
    expired = [path for path in _agents(layout) if (left := _left(path, now)) is None or left <= timedelta()]
    if expired:
        text = f"{len(expired)} expired: {_some(expired)}"
        checks.append(warn("agents' certificates", text, "mas certs agent NAME, or remove the files"))
    return checks


def disk(layout: Layout) -> Check:
    """Whether there is room to accept messages."""
    usage = shutil.disk_usage(layout.root)
    return judge_disk(Space(f"the disk of {layout.root}", usage.total, usage.free))


def judge_disk(space: Space) -> Check:
    """What the room that is left means."""
    text = f"{space.free >> 20} MB free on {space.name}"
    if space.low:
        return fail("disk", text, "Free some: messages are refused with LOG_FULL")
    if space.free < min(_ROOM, space.size // 5):
        return warn("disk", text, "Free some before messages are refused with LOG_FULL")
    return ok("disk", text)


def _controllers_alone(layout: Layout) -> bool:
    """Whether the folder has only what a container of the controller's gets (``containers/parts.py``)."""
    try:
        return Broker.read(layout).contained and not layout.authority.exists()
    except MasError:
        return False


def _agents(layout: Layout) -> Iterator[Path]:
    holders = {layout.policy_certificate(each).cert for each in POLICY_HOLDERS}
    return (path for path in sorted(layout.certs.glob("*/*/*.pem")) if path not in holders)


def _left(path: Path, now: datetime) -> timedelta | None:
    """How long the first of a file's certificates to expire is still valid; None where there is none."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return None
    return min(each.not_valid_after_utc for each in found) - now


def _begins(path: Path) -> datetime:
    """From when on all of a file's certificates are valid."""
    return max(each.not_valid_before_utc for each in x509.load_pem_x509_certificates(path.read_bytes()))


def _renew(layout: Layout, path: Path) -> str:
    if layout.given_tls.exists() and path in (layout.ca, layout.server_cert):
        return "Replace the file that was given to the server: it is followed"
    if path == layout.ca:
        return "mas keys rotate ca"
    name = "server" if path == layout.server_cert else path.stem
    return f"mas keys rotate tls-{name}"


def _span(left: timedelta) -> str:
    hours = int(left.total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"


def _some(paths: list[Path]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(map(str, paths[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
