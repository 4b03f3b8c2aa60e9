"""Generate on the page: jobs, queue, cancelling, saving, settings of a file, comparison."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright_or_skip import expect

from model.samplers import SAMPLERS

pytestmark = pytest.mark.slow


def ask(page, images: int, seed: int, steps: int = 4, class_name: str | None = None) -> None:
    """Fills in the form and sends it."""
    choose_demo(page)
    page.get_by_label("Images", exact=True).fill(str(images))
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_label("Steps", exact=True).fill(str(steps))
    if class_name is not None:
        page.get_by_label("Class", exact=True).select_option(label=class_name)
    page.get_by_role("button", name="Generate", exact=True).click()


def choose_demo(page) -> None:
    """Its weight; otherwise that of the newest run is chosen, which other tests have trained."""
    page.get_by_label("Weight", exact=True).select_option("demo")


def job_of(page, seeds: str):
    """The card of the job with these seeds."""
    return page.locator("article").filter(has_text=seeds)


def test_images_come_are_saved_and_survive_a_reload(open_page):
    page = open_page()
    ask(page, images=3, seed=70, class_name="sneaker")
    card = job_of(page, "seeds 70 to 72")
    expect(card.locator(".tile")).to_have_count(3)
    expect(card).to_contain_text("3 images of sneaker")

    with page.expect_download() as saved:
        card.locator(".tile").nth(1).hover()
        card.get_by_role("button", name="Download sneaker, seed 71").click()
    assert saved.value.suggested_filename == "demo_sneaker_ddim_71.png"
    with Image.open(saved.value.path()) as picture:
        assert picture.size == (28, 28)
        assert picture.text["seed"] == "71"
        assert picture.text["class"] == "sneaker"

    with page.expect_download() as saved:
        card.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert archive.testzip() is None
        seeds = [
            Image.open(io.BytesIO(archive.read(name))).text["seed"] for name in archive.namelist()
        ]
    assert seeds == ["70", "71", "72"]

    page.reload()
    expect(job_of(page, "seeds 70 to 72").locator(".tile")).to_have_count(3)
    expect(page.get_by_label("Seed", exact=True)).to_have_value("70")
    expect(page.get_by_label("Class", exact=True).locator("option:checked")).to_have_text("sneaker")


def test_classes_in_turn_are_named_under_their_images(open_page):
    page = open_page()
    ask(page, images=4, seed=90)
    card = job_of(page, "seeds 90 to 93")
    expect(card.locator(".tile-text").nth(0)).to_contain_text("bag")
    expect(card.locator(".tile-text").nth(3)).to_contain_text("dress")


def test_denoising_is_shown_as_it_comes_and_can_be_cancelled(open_page):
    page = open_page()
    ask(page, images=8, seed=200, steps=900)
    card = job_of(page, "seeds 200 to 207")
    picture = card.get_by_role("img", name="The images so far")
    expect(picture).to_be_visible()
    first = picture.get_attribute("src")
    assert first.startswith("data:image/png;base64,")
    expect(picture).not_to_have_attribute("src", first)
    expect(card.locator("progress")).not_to_have_js_property("value", 0)
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_contain_text("cancelled")
    expect(picture).to_have_count(0)
    expect(page.locator("#announcer")).to_have_text("8 images: cancelled.")


def test_several_jobs_are_under_way_and_a_reload_shows_them_again(open_page):
    page = open_page()
    seeds = (301, 311, 321)
    for seed in seeds:
        ask(page, images=8, seed=seed, steps=900)
        expect(job_of(page, f"seeds {seed} to")).to_be_visible()
    page.reload()
    for seed in seeds:
        card = job_of(page, f"seeds {seed} to")
        expect(card).to_contain_text(re.compile("generating|next|place"))
        card.get_by_role("button", name=re.compile("Cancel|Remove")).click()
        expect(card).to_contain_text("cancelled")


def test_the_server_s_sentence_stands_beside_its_field(open_page, watch):
    watch.expected.append("status of 4")
    page = open_page()
    choose_demo(page)
    field = page.get_by_label("Size")
    field.fill("30")
    ask(page, images=1, seed=1)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    message = page.locator(".field").filter(has=field).get_by_role("alert")
    expect(message).to_contain_text("28")  # a size that would fit

    field.fill("a lot")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(message).to_have_text("A size is one number, or height and width such as 64, 96.")


def test_settings_of_a_file_are_offered_and_used_only_when_asked(open_page, tmp_path):
    page = open_page()
    ask(page, images=1, seed=4242, steps=5, class_name="coat")
    card = job_of(page, "seed 4242")
    with page.expect_download() as saved:
        card.locator(".tile").hover()
        card.get_by_role("button", name="Download coat, seed 4242").click()
    file = tmp_path / "earlier.png"
    saved.value.save_as(file)

    page.get_by_label("Seed", exact=True).fill("9")
    page.get_by_label("Class", exact=True).select_option(label="bag")
    page.get_by_label("Read settings from a PNG file").set_input_files(file)
    offer = page.get_by_role("status").filter(has_text="Settings of earlier.png")
    expect(offer).to_contain_text("4242")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("9")  # not yet

    offer.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("4242")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("5")
    expect(page.get_by_label("Class", exact=True).locator("option:checked")).to_have_text("coat")


def test_a_guide_that_the_page_does_not_ask_for_is_named(open_page):
    page = open_page()
    texts = PngInfo()
    known = {"seed": 7, "sampler": "dpmpp2m", "weights": "demo.pt"}
    for name, value in (known | {"guide_scale": 2.0, "guide_labels": False}).items():
        texts.add_text(name, str(value))
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, "PNG", pnginfo=texts)
    file = {"name": "led.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.get_by_label("Read settings from a PNG file").set_input_files(file)
    offer = page.get_by_role("status").filter(has_text="Settings of led.png")
    expect(offer).to_contain_text("guide knows the class")
    offer.get_by_role("button", name="Use these settings").click()
    said = "the page leads by a guide in the usual way of the weight alone"
    expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("photo.png", b"not a picture", "photo.png cannot be used: it is not a PNG file"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\xff\xffIHDR1234", "the file is cut off"),
    ],
)
def test_a_file_without_settings_is_named(open_page, name, content, sentence):
    page = open_page()
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.get_by_label("Read settings from a PNG file").set_input_files(file)
    expect(page.locator(".offer")).to_contain_text(sentence)


# --- What images begin with, and what steers them ---


def png(pixels: np.ndarray) -> dict:
    """A file for a field of the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"name": "picture.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def images_of(card, page) -> list[np.ndarray]:
    expect(card.locator(".tile img").first).to_be_visible()
    addresses = card.locator(".tile img").evaluate_all("all => all.map(image => image.src)")
    files = [page.request.get(address).body() for address in addresses]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


PHOTO = np.random.RandomState(0).randint(0, 256, (28, 28)).astype(np.uint8)


def begin_with(page, kind: str, photo: np.ndarray | None = PHOTO) -> None:
    page.get_by_label("Begin with").select_option(label=kind)
    if photo is not None:
        page.get_by_label("Picture", exact=True).set_input_files(png(photo))


def test_a_part_that_is_painted_over_is_made_anew(open_page):
    page = open_page()
    choose_demo(page)
    page.get_by_label("Sampler", exact=True).select_option("ddim")
    begin_with(page, "a picture, part of it painted anew")
    canvas = page.get_by_role("img", name="The picture: paint over")
    expect(canvas).to_be_visible()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.up()
    ask(page, images=2, seed=800, steps=5)
    card = job_of(page, "seeds 800 to 801")
    expect(card.locator(".tile")).to_have_count(2)
    for image in images_of(card, page):
        changed = image != PHOTO
        assert changed[13:15, 15:22].mean() > 0.8
        assert not changed[:9].any() and not changed[19:].any() and not changed[:, :10].any()

    # the settings of an image are offered again, without its picture only where that is gone
    card.locator(".tile-open").first.click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("painted under a mask")
    viewer.get_by_role("button", name="Use these settings").click()
    chosen = page.get_by_label("Begin with").locator("option:checked")
    expect(chosen).to_have_text("a picture, part of it painted anew")


def test_what_a_beginning_needs_is_said_in_its_place(open_page):
    page = open_page()
    begin_with(page, "a picture, borders painted around it", photo=None)
    ask(page, images=1, seed=1)
    field = page.locator(".field")
    picture = field.filter(has=page.get_by_label("Picture", exact=True))
    expect(picture.get_by_role("alert")).to_have_text("Choose a picture.")
    borders = page.get_by_label("Borders")
    expect(field.filter(has=borders).get_by_role("alert")).to_contain_text("Four numbers")
    begin_with(page, "a picture, borders painted around it")
    borders.fill("4, 4, 0, 4")
    ask(page, images=1, seed=810, steps=3)
    card = job_of(page, "seed 810")
    expect(card).to_contain_text("32 × 36")
    (image,) = images_of(card, page)
    assert np.array_equal(image[4:, 4:32], PHOTO)


def test_the_server_s_sentence_about_a_picture(open_page, watch):
    watch.expected.append("status of 4")
    page = open_page()
    choose_demo(page)
    begin_with(page, "the noise of a picture")
    page.get_by_label("Sampler", exact=True).select_option("ddpm")
    ask(page, images=1, seed=1)
    picture = page.locator(".field").filter(has=page.get_by_label("Picture", exact=True))
    expect(picture.get_by_role("alert")).to_contain_text("needs a sampler that adds no noise")


def test_images_of_conditions(open_page):
    page = open_page()
    page.get_by_label("Weight", exact=True).select_option("outlines")
    page.get_by_role("button", name="Generate", exact=True).click()
    condition = page.get_by_label("Condition", exact=True)
    field = page.locator(".field").filter(has=condition)
    expect(field).to_contain_text("label map of the numbers 0, 1")
    expect(field.get_by_role("alert")).to_contain_text("choose at least one")
    maps = [png((np.eye(8) > 0).astype(np.uint8)), png(np.zeros((8, 8), np.uint8))]
    condition.set_input_files(maps)
    page.get_by_label("Images", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("820")
    page.get_by_role("button", name="Generate", exact=True).click()
    card = job_of(page, "seeds 820 to 821")
    expect(card.locator(".tile")).to_have_count(2)


def test_several_classes_at_once(open_page):
    page = open_page()
    ask(page, images=1, seed=830, steps=3, class_name="several at once …")
    expect(job_of(page, "seed 830")).to_contain_text("1 image")
    for name in ("bag", "boot"):
        page.get_by_label(name, exact=True).check()
    ask(page, images=1, seed=831, steps=3)
    expect(job_of(page, "seed 831")).to_contain_text("1 image of bag,boot")


def test_a_dropped_file_is_read_too(open_page):
    page = open_page()
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "plain.png"));
            return transfer;
        }""",
        list(buffer.getvalue()),
    )
    page.locator(".results").dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator(".offer")).to_contain_text("plain.png holds no settings of this program.")


def test_a_file_says_what_it_does_not_bring_back(open_page, tmp_path):
    entries = PngInfo()
    for name, text in {"seed": "7", "sampler": "ddim", "init_image": "a.png", "eta": "0.5"}.items():
        entries.add_text(name, text)
    Image.new("L", (4, 4)).save(tmp_path / "changed.png", pnginfo=entries)
    page = open_page()
    page.get_by_label("Read settings from a PNG file").set_input_files(tmp_path / "changed.png")
    expect(page.locator(".offer")).to_contain_text(
        "The image was also made with an image that it began with, an eta, which is not taken over."
    )


def test_samplers_are_compared_at_equal_seeds(open_page):
    page = open_page()
    choose_demo(page)
    page.get_by_label("Compare samplers at equal seeds").check()
    page.get_by_label("Images", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("550")
    page.get_by_label("Steps", exact=True).fill("4")
    page.get_by_role("button", name="Generate with each").click()
    card = page.locator("article").filter(has_text="comparison").first
    rows = card.locator(".comparison-row")
    expect(rows).to_have_count(len(SAMPLERS))
    expect(card.locator(".tile")).to_have_count(2 * len(SAMPLERS))
    for row in rows.all():
        assert row.locator(".tile-text").all_inner_texts() == ["550", "551"]
    page.reload()
    expect(card.locator(".tile")).to_have_count(2 * len(SAMPLERS))


def test_an_image_opens_large_and_the_arrow_keys_turn(open_page):
    page = open_page()
    ask(page, images=2, seed=610, class_name="dress")
    card = job_of(page, "seeds 610 to 611")
    card.locator(".tile-open").first.click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("1 of 2")
    page.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("2 of 2")
    page.keyboard.press("ArrowRight")  # the last one stays
    expect(viewer).to_contain_text("2 of 2")
    viewer.get_by_role("button", name="Use these settings").click()
    expect(viewer).to_be_hidden()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("611")
    expect(page.get_by_label("Images", exact=True)).to_have_value("1")
