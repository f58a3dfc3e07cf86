"""What every test shares: fixed seeds, no network, and skips for what a machine lacks."""

import os
import shutil
import signal
import threading
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached for the network would not be repeatable

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.command_line import run  # noqa: F401  (a fixture)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so every command that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# "ci" draws the same examples on every run, and knows no deadline: a busy machine must not fail a test.
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def find_browser() -> str | None:
    """Return the path of the first chromium on the PATH, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs data or a browser that this machine does not have."""
    browser = find_browser()
    for item in items:
        names = [name for marker in item.iter_markers("shared") for name in marker.args]
        missing = [name for name in names if not (SHARED_DATA / name).exists()]
        if item.get_closest_marker("shared") and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason="there is no ../shared/data"))
        elif missing:
            item.add_marker(pytest.mark.skip(reason=f"../shared/data lacks {', '.join(missing)}"))
        if item.get_closest_marker("browser") and browser is None:
            item.add_marker(pytest.mark.skip(reason="there is no chromium on the PATH"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data sets; a test that asks for it is marked `shared`, with the sets' names."""
    if not SHARED_DATA.is_dir():
        pytest.skip("there is no ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a chromium that can run headless; a test that asks for it is marked `browser`."""
    if (path := find_browser()) is None:
        pytest.skip("there is no chromium on the PATH")
    return path
