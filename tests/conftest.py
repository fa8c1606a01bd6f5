"""No test may see, use or change the keys of whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_keys_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path_factory.mktemp("profiles")))
        for name in ("DBUS_SESSION_BUS_ADDRESS", "ANTHROPIC_PROFILE"):
            patch.delenv(name, raising=False)
        yield
