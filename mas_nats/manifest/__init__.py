"""What people write to declare a multi-agent system, and how it becomes policy."""
