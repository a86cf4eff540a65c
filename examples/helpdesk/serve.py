"""One agent of this example as a process of its own, as ``compose.yaml`` runs them.

``python -m examples.helpdesk.serve helpdesk`` answers; ``... router`` asks a question every few seconds. The
SDK finds in ``.mas`` of the current folder where the broker is and which certificate to show it.
"""

import argparse
import asyncio
from typing import Any

from examples.helpdesk.desk import DeskState, HelpDesk
from mas_nats import Agent, MasError

EVERY = 2.0
"""Seconds between two questions."""


class Router(Agent[dict[str, object]]):
    async def on_start(self) -> None:
        self._asking = asyncio.create_task(self._ask_for_ever())

    async def on_stop(self) -> None:
        self._asking.cancel()

    async def _ask_for_ever(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                await self._ask(number)
            except MasError as error:  # said, and the next question is asked all the same
                print(f"no answer: {error}", flush=True)
            await asyncio.sleep(EVERY)

    async def _ask(self, number: int) -> None:
        for desk in await self.discover(capabilities=["qa"]):
            question = {"question": f"My printer is silent ({number})."}
            reply = await self.request(desk.agent_id, "ask", question, timeout=10)
            print(f"{desk.agent_id} answered: {reply.data['text']}", flush=True)


def agent(name: str) -> Agent[Any]:
    if name == "helpdesk":
        return HelpDesk(name, capabilities=["qa"], state_model=DeskState)
    return Router(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.helpdesk.serve")
    parser.add_argument("agent", choices=["helpdesk", "router"])
    agent(parser.parse_args().agent).run()
