"""Train and Runs on the page: from a folder of images to images of a new weight."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from page_server import HOSTILE, Server, end_trainings
from playwright_or_skip import expect

pytestmark = pytest.mark.slow

TINY = {
    "Image size": "8",
    "Channels": "8",
    "Batch size": "4",
    "Channel mult": "1,2",
    "Head channels": "8",
    "Images per preview": "1",
    "Sample steps": "3",
}
MINUTES = 180_000  # milliseconds for a training on a machine with other work


def fill_in(page, folder: str, name: str, epochs: int) -> None:
    """A tiny training on a data folder, up to the plan."""
    page.get_by_role("radio", name=folder).check()
    page.get_by_label("Name of the run").fill(name)
    for label, value in {**TINY, "Epochs": str(epochs)}.items():
        field = page.get_by_label(re.compile(f"^{label}$", re.I))
        if not field.is_visible():
            page.get_by_label("Find an option").fill(label)
        field.fill(value)
    page.get_by_label("Find an option").fill("")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_role("region", name="The plan")).to_contain_text("steps")


def begin(page) -> None:
    page.get_by_role("button", name=re.compile("Start training|Add to the queue")).click()
    expect(page.get_by_text("Started.")).to_be_visible()


def current(page, name: str):
    """The panel of a run that is being trained."""
    return page.get_by_role("region", name="What is being trained").locator(
        "article", has_text=name
    )


def steps_done(panel) -> int:
    text = panel.locator(".progress-row").inner_text()
    found = re.search(r"step ([\d,]+) of", text)
    return int(found[1].replace(",", "")) if found else 0


def wait_for_steps(panel, steps: int) -> int:
    """Until so many are done; how many are."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if steps_done(panel) >= steps:
            return steps_done(panel)
        time.sleep(0.2)
    raise AssertionError(f"no {steps} steps after two minutes")


def process_of(results: Path, name: str) -> int:
    return int(re.findall(r'"pid": (\d+)', (results / name / "process.json").read_text())[0])


@pytest.fixture(autouse=True)
def nothing_left(server: Server):
    """A test that fails leaves no training to the next one."""
    yield
    end_trainings(server.results)


def test_train_stop_resume_generate_cancel_download(open_page, server: Server):
    page = open_page("#train")
    fill_in(page, "shoes", "journey", epochs=100)
    begin(page)

    # It runs, with a curve; a reload comes back to the same place
    panel = current(page, "journey")
    expect(panel.locator(".u-legend")).to_contain_text("smoothed", timeout=MINUTES)
    page.reload()
    done = wait_for_steps(panel, 20)

    # Stop saves, resume continues from there
    panel.get_by_role("button", name="Stop and save").click()
    line = page.get_by_role("listitem").filter(has_text="journey")
    expect(line).to_contain_text("stopped", timeout=MINUTES)
    saved = json.loads((server.results / "journey" / "status.json").read_text())
    assert saved["state"] == "stopped"
    assert saved["step"] >= done
    line.get_by_role("button", name="Resume").click()
    assert wait_for_steps(panel, saved["step"] + 1) > saved["step"]

    # To the end, and from there to Generate
    page.goto(f"{server.url}/#runs/journey")
    expect(page.locator(".detail-head .pill")).to_have_text("finished", timeout=MINUTES)
    expect(page.get_by_role("img", name=re.compile("Samples of epoch"))).to_be_visible()
    page.get_by_role("button", name="Use ema_last.pt in Generate").click()
    expect(page.get_by_label("Weight", exact=True)).to_have_value("journey")

    page.get_by_label("Images", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Class", exact=True).select_option(label="sneaker")
    page.get_by_role("button", name="Generate", exact=True).click()
    card = page.locator("article").filter(has_text="seeds 5 to 6")
    expect(card.locator(".tile")).to_have_count(2)
    with page.expect_download() as download:
        card.get_by_role("button", name="Download all").click()
    assert download.value.suggested_filename.startswith("journey_")

    page.get_by_label("Steps", exact=True).fill("1000")
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_role("button", name="Generate", exact=True).click()
    long_job = page.locator("article").filter(has_text="seeds 5 to 12")
    long_job.get_by_role("button", name=re.compile("Cancel|Remove")).click()
    expect(long_job).to_contain_text("cancelled")


def test_a_queue_a_crash_of_the_server_and_of_a_run(open_page, server: Server, watch):
    page = open_page("#train")
    fill_in(page, "shoes", "first", epochs=5000)
    begin(page)
    panel = current(page, "first")
    wait_for_steps(panel, 5)
    fill_in(page, "shoes", "second", epochs=5000)
    page.get_by_role("button", name="Add to the queue").click()
    line = page.get_by_role("listitem").filter(has_text="second")
    expect(line).to_contain_text("next in the queue")

    # The server is killed: the run goes on, and the page too when the server is back
    watch.expected.append("ERR_")
    server.end(signal.SIGKILL)
    expect(page.get_by_text("No answer from the server")).to_be_visible()
    before = steps_done(panel)
    server.start()
    expect(page.get_by_text("No answer from the server")).to_be_hidden()
    wait_for_steps(panel, before + 20)
    expect(line).to_contain_text("next in the queue")

    # The run is killed: no phantom "running", and the next one starts
    os.kill(process_of(server.results, "first"), signal.SIGKILL)
    killed = page.get_by_role("listitem").filter(has_text="first")
    expect(killed).to_contain_text("interrupted")
    second = current(page, "second")
    expect(second).to_be_visible()
    killed.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("listitem").filter(has_text="first")).to_contain_text("queue")
    page.get_by_role("button", name="Take out of the queue").click()
    wait_for_steps(second, 1)
    second.get_by_role("button", name="Stop and save").click()
    expect(page.get_by_role("listitem").filter(has_text="second")).to_contain_text("stopped")


def test_a_hostile_class_name_stays_inert(open_page, server: Server):
    page = open_page("#train")
    folder = page.locator(".folder").filter(has_text="odd")
    expect(folder).to_contain_text(HOSTILE)
    fill_in(page, "odd", "<b>bold</b>".replace("/", ""), epochs=3)
    expect(page.get_by_role("region", name="The plan")).to_contain_text(HOSTILE)
    begin(page)
    page.goto(f"{server.url}/#runs/%3Cb%3Ebold%3Cb%3E")
    expect(page.locator(".detail-head .pill")).to_have_text("finished", timeout=MINUTES)
    expect(page.get_by_role("heading", level=1)).to_have_text("<b>bold<b>")
    page.get_by_role("button", name="Use ema_last.pt in Generate").click()
    page.get_by_label("Class", exact=True).select_option(label=HOSTILE)
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Seed", exact=True).fill("77")
    page.get_by_role("button", name="Generate", exact=True).click()
    card = page.locator("article").filter(has_text="seed 77")
    expect(card.locator(".tile").first).to_contain_text(HOSTILE)
    card.locator(".tile-open").first.click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("b").count() == 0
    assert page.locator('img[src="x"]').count() == 0


def test_faulty_settings_are_named_where_they_stand(open_page, watch):
    watch.expected.append("status of 4")
    page = open_page("#train")
    page.get_by_role("radio", name="shoes").check()
    size = page.get_by_label("Image size", exact=True)
    page.get_by_label("Name of the run").fill("faulty")
    page.get_by_label("Epochs", exact=True).fill("0")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_label("Epochs", exact=True)).to_be_focused()
    page.get_by_label("Epochs", exact=True).fill("2")
    size.fill("wide")
    page.get_by_role("button", name="Show the plan").click()
    expect(size).to_be_focused()
    expect(size).to_have_attribute("aria-invalid", "true")
    size.fill("28")
    channels = page.get_by_label("Channels", exact=True)
    channels.fill("7")  # which only the script can refuse
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_role("alert").filter(has_text="must be even")).to_be_visible()
    channels.fill("")
    name = page.get_by_label("Name of the run")
    name.fill(".hidden")
    page.get_by_role("button", name="Show the plan").click()
    expect(name).to_be_focused()
    expect(name).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Start training")).to_have_attribute(
        "aria-disabled", "true"
    )


def test_runs_are_compared_and_deleted_with_confirmation(open_page, server: Server):
    page = open_page("#train")
    for name in ("one", "two"):
        fill_in(page, "shoes", name, epochs=3)
        begin(page)
    page.goto(f"{server.url}/#runs")
    for name in ("one", "two"):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        expect(row).to_contain_text("finished", timeout=MINUTES)
        row.get_by_role("checkbox").check()
    chart = page.get_by_role("region", name="Comparison of runs")
    expect(chart.locator(".u-legend")).to_contain_text("two")
    page.reload()
    expect(chart.locator(".u-legend")).to_contain_text("two")

    page.get_by_role("link", name="one", exact=True).click()
    page.get_by_role("button", name="Delete …").click()
    dialog = page.get_by_role("dialog")
    confirm = dialog.get_by_role("button", name="Delete the run")
    dialog.get_by_role("textbox").fill("on")
    expect(confirm).to_have_attribute("aria-disabled", "true")
    dialog.get_by_role("textbox").fill("one")
    confirm.click()
    expect(page.get_by_role("link", name="two", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="one", exact=True)).to_have_count(0)
    assert not (server.results / "one").exists()


def test_conditions_are_a_data_folder(open_page, server: Server):
    page = open_page("#train")
    page.get_by_label("Find an option").fill("condition path")
    page.get_by_label("Condition path", exact=True).select_option("shoe_masks")
    fill_in(page, "shoes", "steered", epochs=1)
    expect(page.get_by_role("region", name="The plan")).to_contain_text("label maps of 2 labels")
    begin(page)
    config = server.results / "steered" / "config.json"
    end = time.monotonic() + 120
    while not (server.results / "steered" / "ema_last.pt").exists():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert json.loads(config.read_text())["args"]["condition_path"].endswith("shoe_masks")
    page.goto(page.url.replace("#train", "#generate"))
    page.reload()
    page.get_by_label("Weight", exact=True).select_option("steered")
    expect(page.get_by_label("Condition", exact=True)).to_be_visible()
