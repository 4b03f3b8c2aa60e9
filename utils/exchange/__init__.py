"""Weights in and out: to and from other libraries.

diffusers_names    our U-Net's weights under the names that they have in diffusers
to_diffusers       a checkpoint -> a folder that diffusers' pipelines load
from_diffusers     such a folder -> what a checkpoint file holds
"""
