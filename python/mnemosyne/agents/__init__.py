"""The four roles, and what an agent of your own builds on: see :mod:`.base_agent` and :mod:`.agent_factory`."""
