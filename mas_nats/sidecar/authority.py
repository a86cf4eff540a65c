"""The seam for tokens: who is asked for the ``Authorization`` header of a call, on either side.

Whatever an application itself puts into ``Authorization`` is dropped: it is never passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mas_nats.message import AgentMessage
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.refusal import REFUSED, Refusal


@dataclass(frozen=True, slots=True)
class Leaving:
    """A call that is about to leave, in the message ``message_id``.

    ``cause``: the id of the message that made the application call, "" where none did.
    """

    target: str
    call: Call
    cause: str
    message_id: str


class Authority(Protocol):
    """Gives credentials to calls that leave, and looks at those of calls that come."""

    async def authorize(self, leaving: Leaving) -> str:
        """What vouches for a call, as it travels; "" for none.

        Raises:
            Refusal: it may not leave.

        """

    async def accept(self, call: Call, message: AgentMessage, authorization: str) -> str:
        """Look at a call that came; the value of ``Authorization`` that the application gets, "" for none.

        Raises:
            Refusal: the application does not get it.

        """


class NoTokens:
    """There are no tokens: nothing is added, and a call that carries one is refused."""

    async def authorize(self, leaving: Leaving) -> str:  # noqa: ARG002 - the protocol's
        """None is given."""
        return ""

    async def accept(self, call: Call, message: AgentMessage, authorization: str) -> str:  # noqa: ARG002
        """None is expected.

        Raises:
            Refusal: there is one.

        """
        if authorization:
            raise Refusal(
                "token_unexpected",
                "the call carries a token, and nobody here can check one",
                "Run sidecars of one version, with the same settings",
                status=403,
                code=REFUSED,
            )
        return ""
