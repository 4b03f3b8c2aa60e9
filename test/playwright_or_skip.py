"""playwright's `expect`, waiting as long as a busy machine may need; a skip where it is missing."""

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="the page is tested with playwright: pip install -r requirements-page-test.txt",
)
expect = sync_api.expect
expect.set_options(timeout=30_000)  # milliseconds
