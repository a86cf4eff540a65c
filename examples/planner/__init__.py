"""A planner that has workers write in parallel, and a critic judge, with streamed replies."""
