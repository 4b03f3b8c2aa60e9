"""Which preset is chosen for a time, and what the plan says of its neighbours."""

from types import SimpleNamespace

import pytest
import torch

from utils.devices import Precision
from utils.errors import UserError
from utils.free_memory import SHARE_OF_MEMORY
from utils.ranks import Ranks
from utils.training import recipe_choice
from utils.training.length import RunLength
from utils.training.recipe import OPEN_OPTIONS, PRESETS
from utils.training.recipe_choice import RecipeChoice

IMAGES = 60_000
SECONDS = {"tiny": 0.13, "small": 0.45, "medium": 3.0}  # of a step, on a laptop


@pytest.fixture(autouse=True)
def started_just_now(monkeypatch):
    monkeypatch.setattr(recipe_choice, "seconds_since_start", lambda: 0.0)


def choose(
    monkeypatch,
    preset="auto",
    minutes=None,
    epochs=25,
    seconds=SECONDS,
    device="cpu",
    images=IMAGES,
    trained_on=IMAGES,
    memory=100e9,
    size=(28, 28),
    ahead=0.0,
    **given,
):
    measured = []

    def measure(self, name):
        measured.append(name)
        return seconds[name]

    monkeypatch.setattr(RecipeChoice, "_measure", measure)
    run = SimpleNamespace(
        options=SimpleNamespace(minutes=minutes, epochs=epochs, ema_snapshots=0),
        seconds_ahead=ahead,
        ranks=Ranks(),
        free_memory=lambda: memory,
        precision=Precision(torch.float32, torch.device(device)),
    )

    def network_of(values):
        chosen = ("channels", "channel_mult", "blocks_per_level", "attention_levels")
        chosen += ("head_channels", "norm_groups", "time_embedding")
        return {"name": "unet", "in_channels": 1, **{name: values[name] for name in chosen}}

    options = {**dict.fromkeys(OPEN_OPTIONS), **given}
    choice = RecipeChoice(run, preset, options, size, images, trained_on, network_of)
    return choice, measured


@pytest.mark.parametrize(
    ("minutes", "preset"), [(0.1, "tiny"), (8, "tiny"), (35, "tiny"), (37, "small"), (120, "small")]
)
def test_the_network_grows_with_the_minutes(monkeypatch, minutes, preset):
    choice, _ = choose(monkeypatch, minutes=minutes)
    assert choice.preset == preset and choice.is_chosen


def test_what_is_still_to_be_encoded_takes_its_time_too(monkeypatch):
    assert choose(monkeypatch, minutes=40, ahead=60.0)[0].preset == "small"
    assert choose(monkeypatch, minutes=40, ahead=600.0)[0].preset == "tiny"


def test_a_network_gets_enough_images_and_not_only_steps(monkeypatch):
    """Steps of a quarter of a batch count for a quarter; larger ones count for one."""
    assert choose(monkeypatch, minutes=40, batch_size=8)[0].preset == "tiny"
    assert choose(monkeypatch, minutes=160, batch_size=8)[0].preset == "small"
    assert choose(monkeypatch, minutes=35, batch_size=128)[0].preset == "tiny"
    assert choose(monkeypatch, epochs=1, batch_size=8)[0].preset == "tiny"  # 7,500 steps


def test_where_only_large_networks_fit_the_plan_says_why(monkeypatch):
    """Of 8x8 pixels the small ones have one level, and base two."""
    choice, _ = choose(monkeypatch, minutes=1, size=(8, 8), attention_levels=(1,))
    length = RunLength(565, 1875, 32, minutes=1)
    assert choice.preset == "base"
    assert choice.lines(0.1, length)[0] == (
        "preset      base (the smallest that goes with what is given)"
    )
    (remark,) = choice.remarks(length, 1)
    assert "made for 50,000 steps and more, and this run has 565" in remark
    assert "the smaller ones do not go with what is given" in remark


@pytest.mark.parametrize(
    ("preset", "steps", "advice"),
    [
        ("small", 2_000, "--preset tiny is likely"),
        ("small", 2_250, None),
        ("large", 70_000, "--preset base is likely"),
        ("large", 5_000, "--preset small is likely"),
        ("tiny", 10, None),
    ],
)
def test_a_run_that_is_too_short_for_its_preset(monkeypatch, preset, steps, advice):
    choice, _ = choose(monkeypatch, preset=preset)
    remarks = choice.remarks(RunLength(steps, 1875, 32), 1)
    assert [advice in remark for remark in remarks] == ([] if advice is None else [True])


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), None),
        ((60, 60), None),  # 15 pixels at the lowest level
        ((100, 100), "96,96 or 112,112"),
        ((225, 225), "224,224 or 256,256"),
        ((48, 90), "48,88 or 48,96"),
    ],
)
@pytest.mark.parametrize("factor", [1, 8])
def test_sides_that_cannot_be_halved(monkeypatch, size, sizes, factor):
    """Sizes are those of images, also where the diffusion sees latents."""
    choice, _ = choose(monkeypatch, preset="tiny", size=size)
    remarks = choice.remarks(LENGTH, factor)
    if sizes is None:
        assert remarks == []
        return
    words = [word.split(",") for word in sizes.split(" or ")]
    wanted = [",".join(str(factor * int(side)) for side in pair) for pair in words]
    assert remarks[0].endswith(f"--image_size {' or '.join(wanted)}")
    given, _ = choose(monkeypatch, preset="tiny", size=size, channel_mult=(1,))
    assert given.remarks(LENGTH, factor) == []


def test_networks_that_are_surely_too_slow_are_not_measured(monkeypatch):
    _, measured = choose(monkeypatch, minutes=40)
    assert measured == ["tiny", "small"]
    slow = {name: 10 * seconds for name, seconds in SECONDS.items()}
    _, measured = choose(monkeypatch, minutes=40, seconds=slow)
    assert measured == ["tiny"]


def test_a_neighbour_of_short_steps_is_timed_for_the_plan(monkeypatch):
    """By its operations small would take 0.52 s a step, and by its time 0.45."""
    choice, measured = choose(monkeypatch, minutes=1)
    assert choice.preset == "tiny" and measured == ["tiny", "small"]
    lines = choice.lines(0.13, RunLength(450, 1875, 32, minutes=1))
    assert "about 130 steps in 1 minutes" in lines[2]


def test_a_fast_machine_gets_a_larger_network(monkeypatch):
    fast = {"tiny": 0.01, "small": 0.011, "medium": 0.02, "base": 0.05, "large": 0.1}
    choice, _ = choose(monkeypatch, minutes=60, seconds=fast, device="cuda")
    assert choice.preset == "base"


def test_few_epochs_need_no_measuring(monkeypatch):
    choice, measured = choose(monkeypatch, epochs=1)  # 1,875 steps
    assert choice.preset == "tiny" and measured == []


def test_many_epochs_on_a_slow_machine_stay_within_two_hours(monkeypatch):
    slow = {name: 10 * seconds for name, seconds in SECONDS.items()}
    assert choose(monkeypatch, epochs=5)[0].preset == "small"  # 9,375 steps, 1.2 hours
    assert choose(monkeypatch, epochs=5, seconds=slow)[0].preset == "tiny"  # 12 hours


def test_a_width_that_is_given_needs_no_choice(monkeypatch):
    choice, measured = choose(monkeypatch, minutes=8, channels=96, lr=1e-5)
    assert choice.preset == "medium" and not choice.is_chosen and measured == []
    assert choice.values["channels"] == 96 and choice.values["lr"] == 1e-5
    assert choice.lines(1.0, RunLength(100, 10, 32)) == [
        "preset      medium, but for what is given"
    ]


def test_presets_that_cannot_be_built_are_passed_over(monkeypatch):
    """Heads of 64 channels: tiny has 96 where it attends, small 192 and medium 288."""
    choice, measured = choose(monkeypatch, minutes=8, head_channels=64)
    assert choice.preset == "small"
    assert "tiny" not in measured
    lines = choice.lines(0.45, RunLength(1000, 1875, 32, minutes=8))
    assert [line.split()[0] for line in lines[1:]] == ["small"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"channel_mult": (1, 2, 3, 4)}, "28"),
        ({"head_channels": 7}, "7"),
        ({"attention_levels": (9,)}, "9"),
    ],
)
@pytest.mark.parametrize("length", [{"minutes": 8}, {"epochs": 60}])
def test_options_that_go_with_no_preset_are_refused(monkeypatch, given, reason, length):
    with pytest.raises(UserError, match=reason):
        choose(monkeypatch, **length, **given)


def test_the_main_process_says_how_much_time_there_is(monkeypatch):
    """Its clock makes tiny of this run, the other process's would make small of it."""

    class OtherClock(Ranks):
        def gather(self, value):
            return [33 * 60.0 if value == 40 * 60.0 else value]

    monkeypatch.setitem(globals(), "Ranks", OtherClock)
    choice, _ = choose(monkeypatch, minutes=40)
    assert choice.preset == "tiny"


@pytest.mark.parametrize(("images", "augment", "guide"), [(999, 0.12, 0.0), (1000, 0.0, 0.2)])
def test_few_images_are_counted_before_some_are_held_out(monkeypatch, images, augment, guide):
    choice, _ = choose(monkeypatch, preset="tiny", images=images, trained_on=images - 50)
    assert (choice.values["augment"], choice.values["guide_share"]) == (augment, guide)


def test_a_preset_that_is_named_is_taken(monkeypatch):
    choice, measured = choose(monkeypatch, preset="base", minutes=8)
    assert choice.preset == "base" and measured == []
    assert choice.values["batch_size"] == 128 and choice.values["optim"] == "adamw"


def test_the_plan_shows_the_neighbours(monkeypatch):
    choice, _ = choose(monkeypatch, minutes=40)
    first, *others = choice.lines(0.45, RunLength(5200, 1875, 32, minutes=40))
    assert first == "preset      small (chosen for the time there is)"
    assert [line.split()[0] for line in others] == ["tiny", "small", "medium"]
    assert "7.6 M parameters, 5,200 steps in 40 minutes, about" in others[1], "as the run has"
    assert all("GB of memory" in line for line in others)
    assert "about 18,000 steps" in others[0], "as long, of steps that were timed for the choice"
    operations = choice.cost_of("medium").operations / choice.cost_of("small").operations
    few = 5200 / (2 * operations)  # twice as many images
    shown = float(others[2].split(" about ")[1].split()[0].replace(",", ""))
    assert shown == pytest.approx(few, abs=1)


def test_in_a_run_of_epochs_the_neighbours_take_their_own_time(monkeypatch):
    choice, _ = choose(monkeypatch, preset="small", epochs=2)
    lines = choice.lines(0.5, RunLength(3750, 1875, 32))
    assert "small      7.6 M parameters, 0:31:15, about" in lines[2]
    assert "small (for half an hour and more on a CPU)" in lines[0]


# --- Memory ---

TINY_OF_64 = 1.0e9  # bytes, about: tiny on 32 images of 64x64
LENGTH = RunLength(1000, 1875, 32)


def test_a_batch_that_does_not_fit_is_split(monkeypatch):
    """The steps stay what they are: as many images in each."""
    whole, _ = choose(monkeypatch, "tiny", memory=10 * TINY_OF_64, size=(64, 64))
    assert (whole.values["batch_size"], whole.values["grad_accum"]) == (32, 1)
    assert not any("memory  " in line for line in whole.lines(1.0, LENGTH))
    split, _ = choose(monkeypatch, "tiny", memory=TINY_OF_64 / 2, size=(64, 64))
    assert split.values["batch_size"] * split.values["grad_accum"] == 32
    assert split.values["batch_size"] in (4, 8, 16)
    said = split.lines(1.0, LENGTH)[-2]
    images, passes = split.values["batch_size"], split.values["grad_accum"]
    assert f"32 images per step in {passes} passes of {images}, as" in said


def test_what_fits_is_what_is_needed(monkeypatch):
    """At the boundary, less than a thousandth to either side."""
    choice, _ = choose(monkeypatch, "tiny", size=(64, 64))
    needed = choice.cost_of("tiny").memory(32, torch.float32) / SHARE_OF_MEMORY
    for memory, passes in ((1.001 * needed, 1), (0.999 * needed, 2)):
        split, _ = choose(monkeypatch, "tiny", memory=memory, size=(64, 64))
        assert split.values["grad_accum"] == passes


@pytest.mark.parametrize(
    ("given", "shape"),
    [({"batch_size": 32}, (32, None)), ({"grad_accum": 2}, (32, 2))],
)
def test_a_batch_that_is_given_is_not_split(monkeypatch, given, shape):
    choice, _ = choose(monkeypatch, "tiny", memory=TINY_OF_64 / 2, size=(64, 64), **given)
    assert choice.values["batch_size"] == shape[0]
    assert choice.values["grad_accum"] == (shape[1] or 1)
    said = "".join(choice.lines(1.0, LENGTH)[-3:])
    assert "GB are needed" in said and "0.4 GB may be taken" in said and "--batch_size" in said


def test_a_network_that_does_not_fit_is_passed_over(monkeypatch):
    """Of medium, not one image; of small, the batch in several passes."""
    fast = dict.fromkeys(("tiny", "small", "medium", "base", "large", "adm"), 0.001)
    fitting, _ = choose(monkeypatch, minutes=60, seconds=fast, memory=200e9, size=(64, 64))
    assert fitting.preset == "large"
    choice, measured = choose(monkeypatch, minutes=60, seconds=fast, memory=1e9, size=(64, 64))
    assert choice.preset == "small" and "medium" not in measured
    assert choice.values["grad_accum"] > 1
    medium = next(line for line in choice.lines(0.001, LENGTH) if "medium" in line)
    assert medium.endswith("of memory, which there is not")


def test_where_nothing_fits_the_smallest_is_tried(monkeypatch):
    choice, _ = choose(monkeypatch, minutes=60, memory=1e6)
    assert choice.preset == "tiny" and choice.values["batch_size"] == 1
    assert any("GB are needed, and 0.0 GB may be taken" in line for line in choice.lines(1, LENGTH))


def test_all_processes_split_as_the_one_with_the_least_memory(monkeypatch):
    class OtherHasLess(Ranks):
        def gather(self, value):
            return [value, min(value, TINY_OF_64 / 2)]

    monkeypatch.setitem(globals(), "Ranks", OtherHasLess)
    choice, _ = choose(monkeypatch, "tiny", size=(64, 64))
    assert choice.values["grad_accum"] > 1


def test_a_network_whose_steps_run_out_of_memory_is_passed_over(monkeypatch):
    """What is reckoned may be wrong."""

    def seconds_of_recipe(_run, values, *_args):
        if values["channels"] in fitting:
            return 0.01
        raise MemoryError("on purpose")

    def network_of(values):
        keep = ("channels", "channel_mult", "blocks_per_level", "attention_levels")
        network = {name: values[name] for name in keep}
        return {"name": "unet", "in_channels": 1, "num_classes": None, **network}

    def chosen():
        run = SimpleNamespace(
            options=SimpleNamespace(minutes=600, epochs=1, ema_snapshots=0),
            seconds_ahead=0.0,
            ranks=Ranks(),
            free_memory=lambda: 100e9,
            precision=Precision(torch.float32, torch.device("cpu")),
        )
        given = dict.fromkeys(OPEN_OPTIONS)
        return RecipeChoice(run, "auto", given, (28, 28), IMAGES, IMAGES, network_of)

    monkeypatch.setattr(recipe_choice, "seconds_of_recipe", seconds_of_recipe)
    fitting = {PRESETS["tiny"].channels}
    choice = chosen()
    assert choice.preset == "tiny"
    assert choice.lines(0.01, LENGTH)[2].endswith("which there is not")

    fitting = set()
    with pytest.raises(MemoryError):  # of the smallest there is nothing else to say
        chosen()
