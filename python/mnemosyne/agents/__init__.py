"""The four roles, and what an agent of your own builds on: see ``.base_agent`` and ``.agent_factory``."""
