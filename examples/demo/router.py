"""The demo's router: discovers, asks, sends, and is refused once."""

import asyncio
import sys

from mas_nats import Agent, Refused


async def main(question: str) -> None:
    async with Agent[dict[str, object]]("router") as router:
        found = await router.discover(capabilities=["qa"])
        print("discovered:", ", ".join(f"{each.agent_id} {each.capabilities}" for each in found), flush=True)
        reply = await router.request("helpdesk", "ask", {"question": question}, timeout=10)
        print("asked and got:", reply.data["text"], flush=True)
        sent = await router.send("helpdesk", "note", {"text": f"asked {question!r}"})
        print("sent a note, accepted as", sent, flush=True)
        try:
            await router.send("billing", "invoice", {"amount": 1})
        except Refused as refused:
            print("refused:", refused, flush=True)
        else:
            raise SystemExit("a message that no rule allows was accepted")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
