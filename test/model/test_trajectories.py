"""Sampling as state: images of several samplers, at different steps, share each network call."""

import itertools

import numpy as np
import pytest
import torch

from model.networks import build_network
from model.samplers import DDIM, DDPM, PLMS, Trajectory, build_sampler

SIZE = (8, 8)
CLASSES = 3
CONFIG = {"noise_schedule": "cosine", "prediction": "v"}


def small_network(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_network(
        {
            "in_channels": 1,
            "num_classes": CLASSES,
            "channels": 8,
            "channel_mult": [1, 2],
            "blocks_per_level": 1,
            "head_channels": 8,
        }
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # the zeroed layers too
    return network.to(dtype).eval().requires_grad_(False)


def jobs() -> list[dict]:
    """Every sampler, with its own number of steps, labels and guidance; all share a network."""
    return [
        {"sampler": DDPM(**CONFIG, sample_steps=9), "labels": [0, 2], "cfg_scale": 1.0},
        {"sampler": DDIM(**CONFIG, sample_steps=5), "labels": [1], "cfg_scale": 3.0},
        {"sampler": DDIM(**CONFIG, sample_steps=7, eta=1.0), "labels": None, "cfg_scale": 1.0},
        {"sampler": PLMS(**CONFIG, sample_steps=6), "labels": [2, 0], "cfg_scale": [0.0, 2.0]},
        {"sampler": PLMS(**CONFIG, sample_steps=11), "labels": [1, 1], "cfg_scale": 1.5},
    ]


def start(job: dict, number: int, dtype: torch.dtype) -> Trajectory:
    count = 1 if job["labels"] is None else len(job["labels"])
    seeds = [100 * number + i for i in range(count)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x_T = torch.stack([torch.randn(1, *SIZE, generator=g) for g in generators]).to(dtype)
    return job["sampler"].start(
        count, SIZE, 1, job["labels"], job["cfg_scale"], seeds=seeds, x_T=x_T
    )


def alone(job: dict, trajectory: Trajectory, network: torch.nn.Module) -> torch.Tensor:
    *_, (end, _) = job["sampler"].denoise(network, trajectory)
    return end.x


def shared_call(network, samplers: list, trajectories: list[Trajectory]) -> list[Trajectory]:
    """One network call for all of them, as a server makes it."""
    rows = [s.rows(trajectory) for s, trajectory in zip(samplers, trajectories, strict=True)]
    x = torch.cat([x for x, _, _ in rows])
    t = torch.cat([t for _, t, _ in rows])
    nothing = [torch.full_like(t, -1) for _, t, _ in rows]
    labels = [n if part is None else part for (_, _, part), n in zip(rows, nothing, strict=True)]
    outputs = network(x, t, torch.cat(labels)).split([len(t) for _, t, _ in rows])
    triples = zip(samplers, trajectories, outputs, strict=True)
    return [sampler.update(trajectory, output)[0] for sampler, trajectory, output in triples]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_images_of_all_samplers_share_each_call(dtype, bound):
    """Job k joins at tick 2k; every image equals its solo run."""
    network = small_network(dtype)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    work = jobs()
    expected = [alone(job, start(job, number, dtype), network) for number, job in enumerate(work)]
    calls.clear()

    active: dict[int, Trajectory] = {}
    finished: dict[int, torch.Tensor] = {}
    for tick in itertools.count():
        if tick % 2 == 0 and tick // 2 < len(work):
            active[tick // 2] = start(work[tick // 2], tick // 2, dtype)
        if not active:
            break
        samplers = [work[number]["sampler"] for number in active]
        moved = shared_call(network, samplers, list(active.values()))
        active = dict(zip(active, moved, strict=True))
        for number in [n for n, trajectory in active.items() if trajectory.all_done]:
            finished[number] = active.pop(number).x
    assert len(calls) == tick  # one call a tick, however many jobs
    assert len(finished) == len(work)
    for number, images in enumerate(expected):
        assert (finished[number] - images).abs().max() < bound, work[number]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms"])
def test_late_joiners_share_a_trajectory(name):
    """Images of one sampler at different steps, also of other step counts, in one trajectory."""
    network = small_network(torch.float64)
    long, short = (build_sampler(name, CONFIG, eta=1.0, sample_steps=steps) for steps in (8, 5))
    first = {"sampler": long, "labels": [0, 1], "cfg_scale": 2.0}
    second = {"sampler": short, "labels": [2], "cfg_scale": 1.0}
    expected = [
        alone(job, start(job, number, torch.float64), network)
        for number, job in enumerate((first, second))
    ]
    early = start(first, 0, torch.float64)
    for _ in range(2):
        early, _ = long.update(early, network(*long.rows(early)))
    both = Trajectory.cat([early, start(second, 1, torch.float64)])
    assert len(both) == 3
    ended: dict[int, torch.Tensor] = {}
    names = [0, 1, 2]
    while len(both):
        both, _ = long.update(both, network(*long.rows(both)))
        for place, done in enumerate(both.done.tolist()):
            if done:
                ended[names[place]] = both.x[place]
        names = [name for name, done in zip(names, both.done.tolist(), strict=True) if not done]
        both = both.select(~both.done)
    for place, image in enumerate(torch.cat(expected)):
        assert (ended[place] - image).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms"])
@pytest.mark.parametrize("scale", [1.0, 0.0, 2.5])
def test_rows_are_one_an_image_or_two(name, scale):
    sampler = build_sampler(name, CONFIG, sample_steps=4)
    x, t, labels = sampler.rows(sampler.start(3, SIZE, 1, [0, 1, 2], scale, seeds=[1, 2, 3]))
    rows = 6 if scale == 2.5 else 3
    assert x.shape == (rows, 1, *SIZE) and t.shape == (rows,) and t.dtype == torch.long
    if scale == 0:
        assert labels is None
    else:
        assert labels.tolist() == [0, 1, 2, -1, -1, -1][:rows]
    mixed = sampler.start(3, SIZE, 1, [0, 1, 2], [1.0, 2.0, 0.0], seeds=[1, 2, 3])
    assert sampler.rows(mixed)[2].tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms"])
def test_a_start_in_the_middle(name):
    """From x at the noise level of a call on: for one-step samplers exactly the rest of the way."""
    network = small_network(torch.float64)
    sampler = build_sampler(name, CONFIG, sample_steps=6)
    calls = sampler.calls()
    whole = sampler.start(1, SIZE, 1, [0], seeds=[5], x_T=torch.ones(1, 1, *SIZE).double())
    middle = 3
    for _ in range(middle):
        whole, _ = sampler.update(whole, network(*sampler.rows(whole)))
    rest = sampler.start(1, SIZE, 1, [0], seeds=[5], x_T=whole.x, first_call=middle)
    assert rest.calls[0][0] == calls[middle][0]
    assert rest.plans[0][-1][1] == -1
    if name == "ddim":
        ends = [alone({"sampler": sampler}, each, network) for each in (whole, rest)]
        assert torch.equal(*ends)
    else:
        assert alone({"sampler": sampler}, rest, network).isfinite().all()
    with pytest.raises(ValueError, match="first_call must lie in 0.."):
        sampler.start(1, SIZE, 1, first_call=len(calls))


def test_trajectories_that_do_not_belong_together():
    ddim, ddpm = DDIM(sample_steps=3), DDPM(sample_steps=3)
    one, two = ddim.start(1, SIZE, 1, seeds=[0]), ddpm.start(1, SIZE, 1, seeds=[0])
    with pytest.raises(ValueError, match="DDIM.*DDPM"):
        Trajectory.cat([one, two])
    with pytest.raises(ValueError, match="given to .*DDPM"):
        ddpm.update(one, torch.zeros(1, 1, *SIZE))
    with pytest.raises(ValueError, match="has 2 rows, 1 are needed"):
        ddim.update(one, torch.zeros(2, 1, *SIZE))
    for _ in range(3):
        one, _ = ddim.update(one, torch.zeros(1, 1, *SIZE))
    assert one.done.tolist() == [True]
    with pytest.raises(ValueError, match="finished image has no next step"):
        ddim.rows(one)


def test_arguments_of_start_are_checked():
    sampler = DDIM(sample_steps=3)
    for options, message in [
        ({"seeds": [0, 1, 2]}, "3 seeds were given for 2 images"),
        ({"seeds": [0, 2**32]}, "seed must lie in 0..4294967295"),
        ({"seeds": [0, -1]}, "seed must lie in"),
        ({"labels": [1]}, "1 labels were given for 2 images"),
        ({"cfg_scale": [1.0]}, "1 cfg_scale values were given for 2 images"),
        ({"x_T": torch.zeros(2, 3, 4, 4)}, "x_T has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.start(2, SIZE, 1, **options)


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, lambda x: list(np.array(x))])
def test_labels_that_the_network_does_not_have(kind):
    network = small_network(torch.float32)
    beyond = network.num_classes + 1
    with pytest.raises(ValueError, match=f"labels must lie in 0..{network.num_classes - 1}"):
        DDIM(sample_steps=2).sample(network, 2, SIZE, 1, labels=kind([0, beyond]))


def test_labels_for_a_network_without_classes():
    network = build_network(
        {"in_channels": 1, "channels": 8, "channel_mult": [1], "head_channels": 8}
    )
    with pytest.raises(ValueError, match="built without classes"):
        DDIM(sample_steps=2).sample(network, 1, SIZE, 1, labels=[0])


def test_a_negative_label_is_the_null_label():
    network = small_network(torch.float64)
    x, t = torch.ones(2, 1, *SIZE).double(), torch.tensor([3, 500])
    null = network(x, t, torch.full((2,), CLASSES))
    assert torch.equal(network(x, t, torch.full((2,), -1)), null)
    assert torch.equal(network(x, t, None), null)
    assert not torch.equal(network(x, t, torch.zeros(2, dtype=torch.long)), null)


def test_an_exception_in_a_callback_leaves_the_network_training():
    network = small_network(torch.float32).train()

    def fail(*_):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        DDIM(sample_steps=3).sample(network, 1, SIZE, 1, callback=fail)
    assert network.training


def test_a_callback_costs_no_second_estimate(monkeypatch):
    sampler = DDIM(sample_steps=4)
    estimates = []
    original = sampler.x0_and_eps
    monkeypatch.setattr(
        sampler, "x0_and_eps", lambda *a, **k: estimates.append(1) or original(*a, **k)
    )
    seen = []
    sampler.sample(
        lambda x, t, labels=None: x, 1, SIZE, 1, callback=lambda done, x, x0: seen.append(done)
    )
    assert seen == [1, 2, 3, 4] and len(estimates) == 4


def test_nothing_clamps_what_clip_sample_left_alone():
    """The exact eps for N(0,1) data is sigma x: the samples have a standard deviation of 1."""
    for name in ("ddpm", "ddim", "plms"):
        sampler = build_sampler(name, {}, sample_steps=1000, clip_sample=False)

        def exact(x, t, labels=None, sampler=sampler):
            return sampler.levels.sigma(t).to(x) * x

        images = sampler.sample(exact, 64, (8, 8), 1, seeds=range(64))
        # 4096 values: a standard error of 0.011
        assert abs(images.std() - 1.0) < 0.04, name
        assert images.abs().max() > 2
        sampler.clip_sample = True
        assert sampler.sample(exact, 8, (8, 8), 1, seeds=range(8)).abs().max() <= 1


def test_guidance_is_combined_in_float32():
    """From a network that answers in bf16, as under autocast."""
    answers = {0: 1.0, -1: 1.0078125}  # bf16 neighbours

    def network(x, t, labels=None):
        values = torch.tensor([answers[int(label)] for label in labels])
        return values.view(-1, 1, 1, 1).expand(x.shape).to(torch.bfloat16)

    sampler = DDIM(prediction="x0", sample_steps=1, clip_sample=False)
    trajectory = sampler.start(1, SIZE, 1, [0], 1.7, seeds=[0])
    _, x0 = sampler.update(trajectory, network(*sampler.rows(trajectory)))
    exact = answers[-1] + 1.7 * (answers[0] - answers[-1])
    assert x0.dtype == torch.float32 and (x0 - exact).abs().max() < 1e-6


def test_log_snr_and_levels():
    ddim = DDIM(noise_schedule="cosine")
    t = torch.tensor([0, 500, 999])
    alpha, sigma = ddim.levels.alpha(t), ddim.levels.sigma(t)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-12
    assert (ddim.levels.log_snr(t) - 2 * (alpha / sigma).log()).abs().max() < 1e-9
    clean = torch.tensor([-1])
    assert ddim.levels.alpha(clean) == 1 and ddim.levels.sigma(clean) == 0


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms"])
def test_a_step_can_be_tried_again(name):
    """An update changes nothing of the trajectory that it is given, not even its generators."""
    network = small_network(torch.float64)
    sampler = build_sampler(name, CONFIG, eta=1.0, sample_steps=4)
    trajectory = sampler.start(2, SIZE, 1, [0, 1], 2.0, seeds=[1, 2])
    for _ in range(2):
        output = network.float()(*sampler.rows(trajectory))
        once, _ = sampler.update(trajectory, output)
        again, _ = sampler.update(trajectory, output)
        assert torch.equal(once.x, again.x)
        trajectory = once
    twice = trajectory.select([0, 0])  # one image in two places
    output = network(*sampler.rows(twice))
    moved, _ = sampler.update(twice, output)
    assert (moved.x[0] - moved.x[1]).abs().max() < 1e-5


def test_samplers_with_other_settings_do_not_mix():
    one = DDIM(sample_steps=3).start(1, SIZE, 1, seeds=[0])
    for other in (DDIM(sample_steps=3, eta=1.0), DDIM(noise_schedule="cosine", sample_steps=3)):
        with pytest.raises(ValueError, match="agree"):
            Trajectory.cat([one, other.start(1, SIZE, 1, seeds=[0])])
        with pytest.raises(ValueError, match="was given to"):
            other.update(one, torch.zeros(1, 1, *SIZE))


def test_plms_starts_at_the_noise_level_of_the_call():
    sampler = PLMS(sample_steps=10)
    pairs = sampler.time_pairs()
    for call, expected in [(0, pairs[0]), (1, pairs[1]), (2, pairs[1]), (3, pairs[2])]:
        trajectory = sampler.start(1, SIZE, 1, seeds=[0], first_call=call)
        assert trajectory.calls[0][:2] == expected


def test_evaluation_mode_gives_each_part_its_mode_back():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)).train()
    network[1].eval()  # frozen
    DDIM(sample_steps=2).sample(lambda x, t, labels=None: x, 1, SIZE, 1)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t, labels=None):
            assert not self.inner[0].training
            return self.inner(x)

    wrapper = Wrapper()
    DDIM(sample_steps=2).sample(wrapper, 1, SIZE, 1)
    assert wrapper.training and network[0].training and not network[1].training


def test_masks_of_numpy_and_of_the_wrong_length():
    sampler = DDIM(**CONFIG, sample_steps=2)
    trajectory = sampler.start(3, SIZE, 1, [0, 1, 2], seeds=[0, 1, 2])
    mask = np.array([True, False, True])
    for chosen in (mask, list(mask), mask.tolist(), torch.from_numpy(mask), np.array([0, 2])):
        assert trajectory.select(chosen).labels == (0, 2)
    with pytest.raises(ValueError, match="a mask of 2 images was given for 3"):
        trajectory.select(mask[:2])


@pytest.mark.parametrize("row", [(7.0,), (-1.0,), (0.0, 3.0)])
def test_rows_hold_labels_that_the_network_has(row):
    network = small_network(torch.float32)
    sampler = DDIM(**CONFIG, sample_steps=1)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        sampler.sample(network, 1, SIZE, 1, labels=[row])
    sampler.sample(network, 2, SIZE, 1, labels=[(2.0, 0.0), (float("nan"), 1.0)])


def test_rows_of_numbers_as_an_array():
    network = build_network(
        {"in_channels": 1, "numbers": 1, "channels": 8, "channel_mult": [1], "head_channels": 8}
    )
    sampler = DDIM(**CONFIG, sample_steps=1)
    rows = np.array([[0.3], [1.5]])
    found = sampler.sample(network, 2, SIZE, 1, labels=rows, seeds=[0, 1])
    as_tuples = sampler.sample(network, 2, SIZE, 1, labels=[(0.3,), (1.5,)], seeds=[0, 1])
    assert torch.equal(found, as_tuples)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms", "dpmpp2m", "unipc"])
def test_images_in_16_bits_are_computed_in_32(name):
    """A step of them is that of the same image in 32 bits, rounded once."""
    network = small_network(torch.float32)
    sampler = build_sampler(name, CONFIG, sample_steps=4)
    noise = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)).half()
    trajectories = [
        sampler.start(2, SIZE, 1, [0, 2], 3.0, seeds=[0, 1], x_T=x) for x in (noise, noise.float())
    ]
    for _ in range(2):  # the second one uses the history
        x, t, labels = sampler.rows(trajectories[1])
        output = network(x, t, labels)
        (half, _), (full, _) = (sampler.update(each, output) for each in trajectories)
        assert half.x.dtype == torch.float16
        assert (half.x - full.x).abs().max() <= 2**-11 * full.x.abs().max()
        assert all(value.dtype != torch.float16 for value in half.history.values())
        trajectories = [half, full.__class__(**{**vars(full), "x": half.x.float()})]
