"""The router: finds an agent by capability and asks it a question."""

import asyncio

from mas_nats import Agent, TlsClientConfig


async def main() -> None:
    tls = TlsClientConfig(
        root_ca_path="certs/ca.pem",
        client_cert_path="certs/router.pem",
        client_key_path="certs/router.key",
    )
    router: Agent[dict[str, object]] = Agent("router", tls=tls)
    await router.start()
    matches = await router.discover(capabilities=["qa"])  # find agents by capability
    print("can answer questions:", ", ".join(match.agent_id for match in matches))
    reply = await router.request("helpdesk", "ask", {"question": "My printer is silent."}, timeout=10)
    print(reply.data["text"])
    await router.stop()


if __name__ == "__main__":
    asyncio.run(main())
