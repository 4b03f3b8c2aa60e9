"""Checkpoints: written so that a crash leaves the old one whole, read so that damage is noticed and
no code runs.
"""

import contextlib
import os
import zipfile
from pathlib import Path

import torch
from torch import nn

from model.networks import build_network
from utils.errors import UserError, name_list

FORMAT_VERSION = 1
LAST, PREVIOUS, SLIM = "ckpt_last.pt", "ckpt_prev.pt", "ema_last.pt"


def save_checkpoint(contents: dict, path: Path, keep_previous: bool = False) -> None:
    """Write by a temporary file, fsync, rename, fsync of the folder. OSError leaves the old file as
    it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            link = path.with_name(PREVIOUS + ".tmp")
            try:
                link.unlink(missing_ok=True)
                os.link(path, link)
                os.replace(link, path.with_name(PREVIOUS))
            except OSError:  # a file system without links
                os.replace(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def snapshot(value: object) -> object:
    """A copy of nested dicts and lists with their tensors in host memory, which later steps do not
    change.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint file, on the CPU, or UserError with what is wrong with it.

    A bare state_dict (weights of other programs, `module.` prefixes included) comes back as
    {"network": weights}.
    """
    try:
        # torch.load skips the zip's checksums: one flipped bit would load as another number.
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if (
                any(part.compress_type for part in parts)
                or sum(p.file_size for p in parts) > path.stat().st_size
            ):
                raise UserError(
                    f"{path} is no checkpoint: it unpacks to more than itself, torch.save's files do not"
                )
            if damaged := archive.testzip():
                raise UserError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
    except OSError as error:
        raise UserError(
            f"the checkpoint {path} cannot be read: {error.strerror or error}"
        ) from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from None
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or foreign file can fail anywhere in the unpickler
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be loaded as plain tensors and numbers: {first_line}"
        ) from None
    if not isinstance(contents, dict) or not contents:
        raise UserError(
            f"{path} holds no weights: found {type(contents).__name__}, a dict of tensors is needed"
        )
    if "format_version" in contents:
        if (version := contents["format_version"]) != FORMAT_VERSION:
            raise UserError(
                f"{path} has checkpoint format {version}, this code reads {FORMAT_VERSION}"
            )
        return contents
    if not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in contents.items()
    ):
        raise UserError(f"{path} is neither a checkpoint of this project nor a bare state_dict")
    # DistributedDataParallel and torch.compile put these before the names.
    return {
        "network": {
            key.removeprefix("module.").removeprefix("_orig_mod."): w for key, w in contents.items()
        }
    }


def load_weights(
    network: nn.Module, weights: dict, source: Path | str, assign: bool = False
) -> None:
    """Copy weights into the network, or (`assign`) put them there themselves; UserError names all
    that do not fit.
    """
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise UserError(f"the weights in {source} are not all tensors")
    own = network.state_dict()
    both = [
        (key, tuple(weights[key].shape), tuple(own[key].shape)) for key in own if key in weights
    ]
    problems = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "other shapes:": [
            f"{key} {found} instead of {needed}" for key, found, needed in both if found != needed
        ],
    }
    if said := "; ".join(
        f"{what} {name_list(names, 5)}" for what, names in problems.items() if names
    ):
        raise UserError(
            f"the weights in {source} do not fit the network {network.config['name']}: {said}"
        )
    network.load_state_dict(weights, assign=assign)


def inference_network(contents: dict, source: Path | str, use_ema: bool = True) -> nn.Module:
    """The network that a checkpoint's metadata describes, with its EMA or its raw weights, in
    evaluation mode.
    """
    weights = contents.get("ema" if use_ema else "network")
    if weights is None:
        raise UserError(
            f"{source} holds no {'EMA' if use_ema else 'raw'} weights; try --use_ema {not use_ema}"
        )
    try:
        with torch.device(
            "meta"
        ):  # no memory for what a hostile file describes, before its tensors are seen to fit
            network = build_network(contents["config"]["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} describes no network that can be built: {error}") from None
    load_weights(network, weights, source, assign=True)
    return network.to(torch.get_default_dtype()).eval().requires_grad_(False)


def load_for_inference(path: str | Path, use_ema: bool = True) -> tuple[nn.Module, dict, list[str]]:
    """Path of a checkpoint -> the network, the diffusion's config and the class names."""
    contents = read_checkpoint(Path(path))
    if "config" not in contents:
        raise UserError(
            f"{path} is a bare state_dict: it does not say which network, schedule and classes it is for"
        )
    network = inference_network(contents, path, use_ema)
    return network, contents["config"]["diffusion"], contents["config"]["data"]["class_names"]
