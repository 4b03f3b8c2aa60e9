"""Weights that are loaded strictly, and weights that are matched to other classes and channels."""

import math
import unicodedata

import pytest
import torch

from model.networks import build_network
from utils.errors import UserError
from utils.runs.weights import LABEL_TABLE, load_weights, match_weights

SMALL = {"channels": 8, "channel_mult": [1, 2], "head_channels": 8, "norm_groups": 4}
CLASSES = ["bag", "boot", "été"]


def make(num_classes, channels=1, seed=0, name="unet", **options):
    """A network whose every weight is random, the last layers included."""
    torch.manual_seed(seed)
    config = {"name": name, "in_channels": channels, "num_classes": num_classes, **SMALL, **options}
    network = build_network(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def matched(before, after, class_names, previous):
    """The second network with what it keeps of the first one's weights, and what is said."""
    originals = {key: value.clone() for key, value in before.state_dict().items()}
    weights, said = match_weights(after, before.state_dict(), class_names, previous, "w.pt")
    load_weights(after, weights, "w.pt")
    for key, value in before.state_dict().items():
        assert torch.equal(value, originals[key])  # what was given stays as it is
    return after, said


def output(network, label, channels=1):
    """What the network says of two grey images, (2, C, 8, 8)."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 1, 8, 8, generator=generator).expand(-1, channels, -1, -1)
    labels = None if label is None else torch.tensor([label, label])
    with torch.no_grad():
        return network(x, torch.tensor([3, 700]), labels)


def difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("name", ["unet", "cspdarkunet"])
def test_classes_keep_what_they_are_by_name(name):
    before, after = make(3, name=name), make(4, seed=1, name=name)
    classes = ["anorak", unicodedata.normalize("NFD", "été"), "bag", "coat"]
    after, said = matched(before, after, classes, CLASSES)
    assert difference(output(after, 1), output(before, 2)) == 0
    assert difference(output(after, 2), output(before, 0)) == 0
    assert difference(output(after, None), output(before, None)) == 0
    for new in (0, 3):  # an unknown class starts as "no label"
        assert difference(output(after, new), output(before, None)) == 0
    assert said == [
        "labels are matched by name: 2 of 4 classes keep their row",
        "classes that are new, and start as the null label: anorak, coat",
        "classes of the weights that this set does not have: boot",
    ]


def test_the_same_classes_need_no_word():
    before, after = make(3), make(3, seed=1)
    after, said = matched(before, after, CLASSES, CLASSES)
    assert said == []
    assert difference(output(after, 1), output(before, 1)) == 0


def test_classes_in_another_order():
    before, after = make(3), make(3, seed=1)
    after, said = matched(before, after, CLASSES[::-1], CLASSES)
    assert said == ["labels are matched by name: 3 of 3 classes keep their row"]
    for place in range(3):
        assert difference(output(after, place), output(before, 2 - place)) == 0


def test_weights_that_name_no_classes_are_matched_by_number():
    before = make(3)
    for previous in (None, []):
        after, said = matched(before, make(3, seed=1), CLASSES, previous)
        assert said == [] and difference(output(after, 2), output(before, 2)) == 0
    after, said = matched(before, make(2, seed=1), CLASSES[:2], None)
    assert "for 3 classes without names, this set has 2" in said[0]
    for label in (0, 1, None):
        assert difference(output(after, label), output(before, None)) == 0


def test_a_conditional_network_becomes_unconditional():
    before, after = make(3), make(None, seed=1)
    after, said = matched(before, after, [], CLASSES)
    assert difference(output(after, None), output(before, None)) < 1e-5
    assert len(said) == 1 and "the table of labels is dropped" in said[0]


def test_an_unconditional_network_becomes_conditional():
    before, after = make(None), make(3, seed=1)
    after, said = matched(before, after, CLASSES, [])
    for label in (0, 2, None):
        assert difference(output(after, label), output(before, None)) == 0
    assert said == [
        "the weights were trained without classes: the label table is new and starts at zero"
    ]


def test_grey_becomes_colour():
    before, after = make(3), make(3, channels=3, seed=1)
    after, said = matched(before, after, CLASSES, CLASSES)
    found, expected = output(after, 1, channels=3), output(before, 1)
    assert found.shape[1] == 3
    assert difference(found, expected.expand_as(found)) < 1e-5
    assert len(said) == 1 and "for grey pictures, this network is for colour" in said[0]


def test_colour_becomes_grey():
    before, after = make(3, channels=3), make(2, seed=1)
    after, said = matched(before, after, ["boot", "x"], CLASSES)
    expected = output(before, 1, channels=3).mean(1, keepdim=True)
    assert difference(output(after, 0), expected) < 1e-5
    assert "for colour pictures, this network is for grey" in said[0]
    assert said[1] == "labels are matched by name: 1 of 2 classes keep their row"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"channels": 16}, "do not fit the network unet: other shapes: .*label.weight"),
        ({"blocks_per_level": 1}, "do not fit the network unet: missing down.level0_block1"),
        ({"name": "cspdarkunet"}, "do not fit the network unet: missing .*; unexpected "),
        ({"channels": 16, "in_channels": 3}, "do not fit the network unet: other shapes: "),
        (
            {"in_channels": 4},
            "do not fit the network unet: other shapes: conv_in.weight .8, 4, 3, 3. instead of",
        ),
    ],
)
def test_what_can_never_fit_is_refused_by_name(other, message):
    before = build_network({"in_channels": 1, "num_classes": 3, **SMALL, **other})
    with pytest.raises(UserError, match=f"the weights in w.pt {message}"):
        match_weights(make(2), before.state_dict(), ["a", "b"], CLASSES, "w.pt")


def test_a_huge_tensor_in_a_small_file_is_not_unfolded():
    weights = {**make(3).state_dict(), "conv_in.weight": torch.zeros(1).expand(10**12, 1, 3, 3)}
    with pytest.raises(UserError, match="conv_in.weight .1000000000000, 1, 3, 3. instead of"):
        match_weights(make(3, channels=3), weights, CLASSES, CLASSES, "w.pt")


def test_class_names_that_are_not_those_of_the_weights():
    with pytest.raises(UserError, match="w.pt names 2 classes, but its weights are for 3"):
        match_weights(make(2), make(3).state_dict(), ["a", "b"], ["a", "b"], "w.pt")


def test_weights_that_do_not_fit_are_named():
    network = make(3)
    weights = dict(network.state_dict())
    weights["conv_in.weight"] = torch.zeros(8, 3, 3, 3)
    weights["extra\nline"] = weights.pop("conv_out.bias")
    weights["norm_out.bias"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(UserError) as stop:
        load_weights(network, weights, "x.pt")
    assert str(stop.value) == (
        "the weights in x.pt do not fit the network unet: missing conv_out.bias; "
        "unexpected 'extra\\nline'; other shapes: conv_in.weight (8, 3, 3, 3) instead of "
        "(8, 1, 3, 3); other kinds of numbers: norm_out.bias whole instead of floating-point"
    )


@pytest.mark.parametrize(
    "value", [3, torch.zeros(8, device="meta"), torch.zeros(8).to_sparse()], ids=str
)
def test_weights_that_are_no_plain_numbers(value):
    network = make(3)
    weights = {**network.state_dict(), "norm_out.bias": value}
    for call in (load_weights, lambda *args: match_weights(*args[:2], CLASSES, CLASSES, args[2])):
        with pytest.raises(UserError, match="the weights in x.pt are not all tensors of plain"):
            call(network, weights, "x.pt")


def test_half_precision_loads():
    network = make(3)
    weights = {key: value.half() for key, value in network.state_dict().items()}
    load_weights(network, weights, "x.pt")
    assert network.conv_in.weight.dtype == torch.float32
    assert LABEL_TABLE in network.state_dict()


# --- Numbers ---

AGE = {"name": "age", "mean": 40.0, "std": 10.0}
SIZE = {"name": "size", "mean": 3.0, "std": 0.5}
YEARS = {"name": "age", "mean": 25.0, "std": 4.0}  # the same number, of other images
PRICE = {"name": "price", "mean": 100.0, "std": 30.0}


def told(network, numbers, values):
    """What the network says of two images of which it is told these raw values by name."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    row = [
        (values[each["name"]] - each["mean"]) / each["std"] if each["name"] in values else math.nan
        for each in numbers
    ]
    rows = torch.tensor([row] * 2, dtype=torch.float32)
    with torch.no_grad():
        return network(x, torch.tensor([3, 700]), rows if numbers else None)


def with_numbers(before, after, previous, numbers):
    weights, said = match_weights(
        after, before.state_dict(), [], [], numbers=numbers, previous_numbers=previous
    )
    load_weights(after, weights, "w.pt")
    return said


def test_numbers_keep_what_they_are_by_name_and_scale():
    before = make(None, numbers=2)
    after = make(None, seed=1, numbers=3)
    theirs, ours = [AGE, SIZE], [PRICE, SIZE, YEARS]
    said = with_numbers(before, after, theirs, ours)
    assert said == ["numbers that are new, and count nothing at first: price"]
    for known in ({"age": 31.0, "size": 4.0}, {"age": 55.0}, {"size": 2.0}, {}):
        expected = told(before, theirs, known)
        assert difference(told(after, ours, known), expected) < 1e-5
        assert difference(told(after, ours, {**known, "price": 70.0}), expected) < 1e-5
    assert difference(told(after, ours, {"age": 31.0}), told(after, ours, {"age": 55.0})) > 1e-2


def test_the_same_numbers_stay_to_the_bit_and_others_are_named():
    before = make(None, numbers=2)
    after = make(None, seed=1, numbers=2)
    assert with_numbers(before, after, [AGE, SIZE], [AGE, SIZE]) == []
    assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))
    (said,) = with_numbers(before, after, [AGE, SIZE], [YEARS, SIZE])
    assert "matched by name" in said
    new, gone = with_numbers(before, after, [AGE, SIZE], [PRICE, SIZE])
    assert new.endswith(": price") and gone.endswith(": age")
    assert with_numbers(before, after, None, [PRICE, SIZE]) == []  # bare weights name nothing


def test_a_network_starts_as_weights_without_numbers_and_the_reverse():
    before, after = make(None), make(None, seed=1, numbers=2)
    (said,) = with_numbers(before, after, [], [AGE, SIZE])
    assert "yet to learn" in said
    assert difference(told(after, [AGE, SIZE], {"age": 31.0}), told(before, [], {})) == 0
    before, after = make(None, numbers=2), make(None, seed=1)
    (said,) = with_numbers(before, after, [AGE, SIZE], [])
    assert "no numbers" in said
    assert difference(told(after, [], {}), told(before, [AGE, SIZE], {})) < 1e-5


def test_layers_for_numbers_that_do_not_fit_are_named():
    weights = make(None, numbers=2).state_dict()
    weights["condition.numbers.2.bias"] = torch.zeros(3)
    for numbers in ([], [AGE, SIZE]):
        with pytest.raises(UserError, match=r"condition\.numbers\.2\.bias"):
            match_weights(make(None, numbers=len(numbers)), weights, [], [], numbers=numbers)
