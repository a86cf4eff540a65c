"""Whose MCP sessions are whose: an id that another application knows does not let it in."""

from __future__ import annotations

from collections import OrderedDict

from mas_nats.sidecar.refusal import INVALID_REQUEST, Refusal, Shape

_MOST = 10_000


class Sessions:
    """The sessions that the application has opened since this sidecar started."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()

    def opened(self, session: str, owner: str) -> None:
        """The application gave ``session`` to ``owner``."""
        self._owners[session] = owner
        self._owners.move_to_end(session)
        if len(self._owners) > _MOST:
            self._owners.popitem(last=False)

    def ended(self, session: str) -> None:
        """It is over."""
        self._owners.pop(session, None)

    def require(self, session: str, sender: str, request_id: str | int | None) -> None:
        """Refuse a session that is not the sender's, as one that there is not.

        Raises:
            Refusal: status 404, which makes a client begin anew.

        """
        if self._owners.get(session) != sender:
            raise Refusal(
                "session",
                "there is no such session",
                "Begin again with initialize",
                status=404,
                code=INVALID_REQUEST,
                shape=Shape.MCP,
                request_id=request_id,
            )
        self._owners.move_to_end(session)
