"""How fast this project is, alone and beside others: tools/benchmark.py.

turns        variants measured in turns; median and spread
own_steps    a step of our training loop on a fixed batch
own          our networks, samplers, saving and latents beside each other
case         an image size, the network for it and its weights
contenders   what is compared, and which of it is installed
ours, diffusers_peer, lucidrains_peer   a training step, a network call and a sampling of each
convolution  the fastest convolution of this machine
contender_process   each in a process of its own; contender_worker is what runs there
shares       of the loader in training, of the network in sampling
comparison   all of it in one run
results, report, bars   what was found: as data, as Markdown and JSON, as a picture
"""
