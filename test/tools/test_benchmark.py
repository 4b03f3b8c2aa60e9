"""benchmark.py runs; what it prints is for people."""

import re


def test_benchmark(script):
    tiny = [
        "--channels",
        8,
        "--channel_mult",
        "4,8",
        "--image_size",
        8,
        "--batch_size",
        2,
        "--rounds",
        1,
        "--use_gpu",
        -1,
    ]
    train = script("benchmark", "train", "--peers", *tiny).stdout
    assert re.findall(r"^(unet|cspdarkunet|UNet2DModel) float32 .*x the time", train, re.M)
    assert len(re.findall(r"images/s", script("benchmark", "sample", *tiny).stdout)) == 6
    assert "what training waits for" in script("benchmark", "save", *tiny).stdout
    latent = script("benchmark", "latent", *tiny[:4], "--image_size", 64, *tiny[6:]).stdout
    assert len(re.findall(r"^(pixels|latents, 1/[48]) .*MiB more", latent, re.M)) == 3
    assert len(re.findall(r"^(pixels|latents, 1/[48]) .*x the time", latent, re.M)) == 3
