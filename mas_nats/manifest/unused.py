"""What a manifest may say and nothing acts upon yet; nobody may believe that it is enforced."""

from __future__ import annotations

from mas_nats.manifest.gateway import GatewaySettings

NOT_YET = ("telemetry",)
"""The sections of ``gateway:`` on which nothing acts in this version."""

NO_EFFECT = "is read but has no effect in this version"


def unused_sections(gateway: GatewaySettings) -> list[str]:
    """What ``gateway`` sets and nothing acts upon."""
    said = (
        *((name, name) for name in gateway.model_fields_set),
        *((f"features.{name}", name) for name in gateway.features.model_fields_set),
    )
    return [place for place, name in sorted(said) if name in NOT_YET]
