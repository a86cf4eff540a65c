"""What keys there are: who holds them, what they do, what their loss means; as in ``docs/keys.md``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_policy.embedded.layout import Layout

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Key:
    """One key; ``file`` is relative to the installation's folder."""

    name: str
    holder: str
    file: str
    what: str
    loss: str
    how: str = ""  # where it is not ``mas keys rotate NAME``

    def path(self, layout: Layout) -> Path:
        """Its file."""
        return layout.root / self.file

    def row(self, layout: Layout, now: float | None = None) -> dict[str, Any]:
        """The key as ``mas keys list`` shows it. Never what is in the file."""
        path = self.path(layout)
        try:
            found = path.stat()
        except OSError:
            mode, age = None, None
        else:
            mode = f"{found.st_mode & 0o777:04o}"
            age = round(((time.time() if now is None else now) - found.st_mtime) / _DAY, 3)
        return {
            "name": self.name,
            "holder": self.holder,
            "file": str(path),
            "mode": mode,
            "age_days": age,
            "what": self.what,
            "loss": self.loss,
            "rotate": self.how or f"mas keys rotate {self.name}",
        }


_ACCOUNTS = "not in place: see docs/keys.md, 'The accounts secret'"

KEYS: tuple[Key, ...] = (
    Key(
        "operator",
        "nobody in operation: keep it offline",
        "keys/controller/operator.nk",
        "identity of the operator: names its signing key",
        "a new operator, every server restarted",
    ),
    Key(
        "operator-signing",
        "controller",
        "keys/controller/operator-signing.nk",
        "signs accounts",
        "every account can be forged",
    ),
    Key(
        "accounts",
        "controller",
        "keys/controller/accounts.key",
        "derives the identities of all accounts",
        "anything inside every account",
        _ACCOUNTS,
    ),
    Key(
        "sys-signing",
        "controller",
        "keys/controller/sys-signing.nk",
        "connects to the system account: pushes accounts, kicks",
        "connections can be cut, accounts deleted",
    ),
    Key(
        "auth-signing",
        "worker",
        "keys/worker/auth-signing.nk",
        "signs the answers of the auth callout",
        "identities can be forged",
    ),
    Key(
        "auth-user",
        "worker",
        "keys/worker/auth-user.nk",
        "the user that answers the auth callout",
        "identities can be forged, together with auth-signing",
    ),
    Key(
        "tenant-signing",
        "worker",
        "keys/worker/tenant-signing.nk",
        "signs users of tenants and agents",
        "anything inside every tenant",
    ),
    Key(
        "control-worker",
        "worker",
        "keys/worker/control-worker.nk",
        "reads policy, writes heartbeats",
        "policy can be read",
    ),
    Key(
        "sys-observer",
        "worker",
        "keys/worker/sys-observer.nk",
        "asks servers for their durability settings",
        "settings can be read",
    ),
    Key(
        "sealing",
        "worker",
        "keys/worker/sealing.key",
        "seals replies, authenticates records, salts commitments, names instances",
        "replies can be forged, records made up until projected",
    ),
    Key(
        "token-signing",
        "worker",
        "keys/worker/token-signing.key",
        "signs the tokens of sidecars",
        "calls of tools can be made up, by an agent that may send to the server",
    ),
    Key(
        "checkpoint",
        "signer",
        "keys/signer/checkpoint.key",
        "signs checkpoints of the audit",
        "an edited audit can be signed again",
    ),
    Key(
        "control-signer",
        "signer",
        "keys/signer/control-signer.nk",
        "appends checkpoints, reads them back",
        "false checkpoints, which do not verify",
    ),
    Key(
        "ca",
        "whoever runs mas certs",
        "authority/ca.key",
        "issues every certificate",
        "any identity",
    ),
    Key(
        "tls-server",
        "nats-server",
        "certs/server.key",
        "the server's certificate",
        "the server can be impersonated",
    ),
    Key(
        "tls-worker",
        "worker",
        "certs/default/policy/worker.key",
        "the workers' certificate",
        "TLS as the policy service; a signing key is needed besides",
    ),
    Key(
        "tls-controller",
        "controller",
        "certs/default/policy/controller.key",
        "the controller's certificate",
        "TLS as the policy service; a signing key is needed besides",
    ),
    Key(
        "tls-signer",
        "signer",
        "certs/default/policy/signer.key",
        "the checkpoint signer's certificate",
        "TLS as the policy service; a signing key is needed besides",
    ),
)

BY_NAME = {key.name: key for key in KEYS}
