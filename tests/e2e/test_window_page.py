"""The page, looked at in a real browser while a run is worked on and while a role is degraded."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import OpenWindow
from command import DemoServer, Sandbox, until
from patient import PATIENT, go_on
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PICTURES = os.environ.get("MNEMOSYNE_PICTURES")
"""A folder for what was seen, for people."""

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


def one(browser: Chrome, selector: str) -> WebElement:
    until(lambda: browser.find_elements(By.CSS_SELECTOR, selector), f"{selector} is on the page", 20)
    return browser.find_element(By.CSS_SELECTOR, selector)


def says(browser: Chrome, selector: str, *words: str) -> None:
    def text() -> str:
        found = browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return str(found)

    until(lambda: all(word in text() for word in words), f"{selector} says {words}", 20)


def sign_in(browser: Chrome, window: OpenWindow) -> None:
    browser.get(window.address)
    assert "Paste the line" in browser.page_source
    one(browser, "#token").send_keys("wrong")
    one(browser, "button").click()
    says(browser, "strong", "This is not the token of this window.")
    one(browser, "#token").send_keys(window.token_file.read_text().strip())
    one(browser, "button").click()
    says(browser, "#connection", "live")


def keep(browser: Chrome, name: str) -> None:
    """A picture for people, light and dark."""
    for scheme in ("light", "dark") if PICTURES else ():
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.save_screenshot(str(Path(str(PICTURES)) / f"{name}-{scheme}.png"))


def complaints(browser: Chrome) -> list[str]:
    """What the browser itself had to say: a script that failed, a resource that was refused."""
    seen = [str(entry["message"]) for entry in browser.get_log("browser")]
    return [text for text in seen if "401" not in text]  # the sign-in page is one


def test_the_page_shows_the_tree_the_runs_and_their_tasks_as_they_change_and_tells_them_what_to_do(
    sandbox: Sandbox, server: DemoServer, browser: Chrome
) -> None:
    window = OpenWindow.of(sandbox.start("serve", "--port", "0", "--json"))
    sign_in(browser, window)
    says(browser, "#runs", "There are no runs in this store yet.")
    (sandbox.root / "patient.py").write_text(PATIENT)
    running = sandbox.start_demo("--base-url", server.url, "--agent", "executor=patient:Patient")
    until((sandbox.root / "reached").exists, f"the executor is reached: {running.errors}")
    run = running.event("run_submitted")["run"]
    card = f"[data-run={run}]"
    says(browser, card, run, "running", "plan to artifacts", "t1", "Finish shop.", "tokens", "USD")
    says(browser, "[data-role=executor]", "executor-1", "busy", "generation 1", f"on {run}")
    says(browser, "[data-role=reviewer]", "reviewer-1", "idle")
    says(browser, "#events", "work started", "task ready")
    keep(browser, "running")
    one(browser, f"{card} .actions button").click()
    says(browser, card, "paused")
    one(browser, f"{card} .actions button").click()
    says(browser, card, "running")
    go_on(sandbox)
    assert running.finished().exit_code == 0
    says(browser, card, "done", "accepted", "attempt")
    assert len(browser.find_elements(By.CSS_SELECTOR, f"{card} [data-task]")) == 4
    keep(browser, "done")
    assert complaints(browser) == []
    # Nothing on it comes from anywhere else.
    loaded = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(str(name).startswith(window.address) for name in browser.execute_script(loaded))


def test_a_degraded_role_and_a_process_that_was_killed_are_unmistakable(
    sandbox: Sandbox, server: DemoServer, browser: Chrome
) -> None:
    window = OpenWindow.of(sandbox.start("serve", "--port", "0", "--json"))
    sign_in(browser, window)
    running = sandbox.start_demo("--base-url", server.url, "--agent", "executor=not_there:Agent")
    says(browser, "#alerts", "executor is degraded", "not_there")
    role = one(browser, "[data-role=executor]")
    assert "degraded" in str(role.get_attribute("class"))
    border = browser.execute_script("return getComputedStyle(arguments[0]).borderLeftColor", role)
    other = one(browser, "[data-role=reviewer]")
    assert border != browser.execute_script("return getComputedStyle(arguments[0]).borderLeftColor", other)
    assert one(browser, "#alerts").is_displayed()
    keep(browser, "degraded")
    running.send(signal.SIGKILL)
    says(browser, "#alerts", "is interrupted", "mnemosyne resume")
    says(browser, "#tree", "which is gone", "stopped")
    keep(browser, "killed")
