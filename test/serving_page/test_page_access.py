"""Who may be in the way of whom: keyboard, narrow screens, screen readers, tokens."""

import re
import shutil

import pytest
from helpers import ROOT
from page_server import Server
from playwright_or_skip import expect

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-tests"
NARROW = 360  # pixels
PLACES = ("#generate", "#train", "#runs", "#runs?with=RUN", "#runs/RUN")
SERIOUS = ("serious", "critical")


def tab_to(page, role: str, name: str, most: int = 60) -> None:
    """Presses Tab until the control has the focus."""
    wanted = page.get_by_role(role, name=name, exact=True)
    for _ in range(most):
        page.keyboard.press("Tab")
        if wanted.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {role} {name!r}")


def is_ring_visible(page) -> bool:
    """Whether what has the focus shows it."""
    return page.evaluate(
        "() => getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        " && parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2"
    )


def wait_until_filled(page, place: str) -> None:
    """Until the view shows what the server says."""
    shown = {
        "#generate": page.get_by_role("button", name="Generate", exact=True),
        "#train": page.get_by_role("radio").first,
        "#runs": page.get_by_role("heading", name="Runs"),
        "#runs?with=RUN": page.locator(".compared .u-legend"),
        "#runs/RUN": page.locator(".monitor .u-legend"),
    }
    expect(shown[place]).to_be_visible()
    expect(page.get_by_text("Loading …")).to_be_hidden()


def test_everything_is_done_by_keyboard(open_page):
    page = open_page()
    wait_until_filled(page, "#generate")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")

    tab_to(page, "combobox", "Weight")
    page.keyboard.type("demo")
    tab_to(page, "combobox", "Class")
    page.keyboard.type("trouser")
    tab_to(page, "spinbutton", "Images")
    page.keyboard.type("2")
    tab_to(page, "spinbutton", "Seed")
    page.keyboard.type("880")
    tab_to(page, "spinbutton", "Steps")
    page.keyboard.type("4")
    assert is_ring_visible(page)
    page.keyboard.press("Enter")  # sends the form
    card = page.locator("article").filter(has_text="seeds 880 to 881")
    expect(card.locator(".tile")).to_have_count(2)

    tab_to(page, "button", "trouser, seed 880")
    assert is_ring_visible(page)
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("1 of 2")
    page.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("2 of 2")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.get_by_role("button", name="trouser, seed 880", exact=True)).to_be_focused()

    tab_to(page, "button", "Download trouser, seed 880")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_a_training_is_planned_by_keyboard(open_page):
    page = open_page("#train")
    wait_until_filled(page, "#train")
    tab_to(page, "radio", "odd")
    for folder in ("shoe_masks", "shoes"):
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("radio", name=folder)).to_be_checked()
    tab_to(page, "textbox", "Name of the run")
    page.keyboard.press("Control+A")
    page.keyboard.type("by keyboard")
    tab_to(page, "button", "Show the plan")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="The plan")).to_contain_text("steps")
    expect(page.get_by_role("button", name=re.compile("Start|Add to"))).to_be_focused()


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_wider_than_a_phone(open_page, finished_run, place):
    page = open_page(place.replace("RUN", finished_run), width=NARROW)
    wait_until_filled(page, place)
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing_serious(open_page, finished_run, place, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe is needed: pip install -r requirements-page-test.txt",
    )
    page = open_page(place.replace("RUN", finished_run), scheme=scheme)
    wait_until_filled(page, place)
    if place == "#generate":  # with images and an offer, or there is little to find fault with
        page.get_by_label("Images", exact=True).fill("2")
        page.get_by_label("Steps", exact=True).fill("2")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator(".tile").first).to_be_visible()
    if place == "#train":
        for group in page.locator("details.option-group summary").all():
            group.click()
    findings = axe.Axe().run(page).response["violations"]
    serious = [
        f"{finding['id']}: {node['target']} {node['failureSummary']}"
        for finding in findings
        if finding["impact"] in SERIOUS
        for node in finding["nodes"]
    ]
    assert serious == []


def test_a_token_is_asked_for(open_page, watch, tmp_path):
    (tmp_path / "weight").mkdir()
    shutil.copy(ROOT / "weight" / "demo.pt", tmp_path / "weight")
    guarded = Server(tmp_path, ["--token", TOKEN])
    guarded.start()
    watch.expected.append("status of 401")
    watch.host = guarded.url.removeprefix("http://")
    try:
        page = open_page("#runs", url=guarded.url)
        field = page.get_by_label("Token")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("the token is wrong")
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        assert TOKEN not in page.evaluate("document.cookie + JSON.stringify(localStorage)")
    finally:
        guarded.end()


def test_the_place_survives_a_reload_and_going_back(open_page):
    page = open_page("#train")
    wait_until_filled(page, "#train")
    page.get_by_role("link", name="Runs").click()
    page.reload()
    expect(page.get_by_role("link", name="Runs")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_role("link", name="Train")).to_have_attribute("aria-current", "page")
