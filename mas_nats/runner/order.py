"""What the runner tells the process of an instance, on its standard input; it may hold secrets."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Order(BaseModel):
    """Everything that one instance needs to know."""

    model_config = ConfigDict(frozen=True)

    agent_id: str
    class_path: str
    folder: Path  # of the manifest, from which classes are imported
    capabilities: tuple[str, ...] = ()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    init_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    address: str | None  # where to go; None: where the broker's folder says, before each attempt
    listen: str  # where to go when neither says it
    broker: Path | None  # the folder of ``mas up``
    ca: Path
    cert: Path
    key: Path
    drain: float  # seconds that handlers get at the end
    log_level: str = "WARNING"
