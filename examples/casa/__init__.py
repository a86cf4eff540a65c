"""Applications that know nothing of this system, bound by it: an MCP server, an A2A agent, a client."""
