"""What a file is that is no checkpoint of this project: told by its content, not its ending."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 1024  # of a file, to tell what it is
READS = "this project reads its own checkpoints and the weights of its own networks"


@dataclass(frozen=True)
class Signature:
    """Bytes at one place of a file that tell what the file is."""

    magic: bytes
    what: str
    offset: int = 0


PYTHON_PICKLE = (
    "a Python pickle, which can run code when it is loaded; the weights alone, saved with "
    "torch.save(network.state_dict(), file) or as safetensors, would work"
)
SIGNATURES = (
    Signature(
        b"version https://git-lfs.github.com/spec/",
        'a Git LFS pointer, a note of where the file lies: "git lfs pull" fetches the file itself',
    ),
    Signature(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them, no checkpoint of PyTorch"),
    Signature(b"TFL3", "a TensorFlow Lite model, no checkpoint of PyTorch", offset=4),
    Signature(b"\x08\x01\x12", "a TensorFlow model, no checkpoint of PyTorch"),
    Signature(b"GGUF", "a GGUF file, no checkpoint of PyTorch"),
    Signature(b"\x93NUMPY", "a NumPy array, no checkpoint"),
    Signature(b"\x1f\x8b", "compressed with gzip; unpack it first"),
    Signature(b"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    Signature(b"BZh", "compressed with bzip2; unpack it first"),
    Signature(b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    Signature(b"Rar!", "a RAR archive; unpack it first"),
    Signature(b"ustar", "a tar archive; unpack it first", offset=257),
    Signature(b"\x89PNG", "a picture, no checkpoint"),
    Signature(b"\xff\xd8\xff", "a picture, no checkpoint"),
    Signature(b"GIF8", "a picture, no checkpoint"),
    Signature(b"%PDF", "a PDF document, no checkpoint"),
)
ONNX = re.compile(rb"\x08[\x02-\x20]\x12.[\x20-\x7e]{2,}", re.DOTALL)  # IR version, then producer
PICKLE = re.compile(rb"\x80[\x02-\x05]")
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml|!--)", re.IGNORECASE)
TENSORFLOW_FILE = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")

# Modules of the classes that other programs leave in their files.
PROGRAMS_BY_CLASS = {
    "pytorch_lightning.": "PyTorch Lightning",
    "lightning.": "PyTorch Lightning",
    "lightning_fabric.": "PyTorch Lightning",
    "denoising_diffusion_pytorch.": "denoising-diffusion-pytorch",
    "ema_pytorch.": "ema-pytorch",
    "diffusers.": "diffusers",
    "guided_diffusion.": "guided-diffusion",
    "improved_diffusion.": "improved-diffusion",
    "k_diffusion.": "k-diffusion",
    "ldm.": "latent-diffusion (Stable Diffusion)",
    "torch_utils.persistence": "EDM or StyleGAN (NVIDIA)",
    "numpy.": "a program that saved NumPy arrays",
}


@dataclass(frozen=True)
class Program:
    """A program whose weights are known by parts of their names, all of which must occur."""

    name: str
    parts: tuple[str, ...]


PROGRAMS = (
    Program(
        "latent-diffusion (Stable Diffusion)", ("model.diffusion_model.", "first_stage_model.")
    ),
    Program("diffusers", ("down_blocks.0.resnets.", "time_embedding.linear_1.")),
    Program("diffusers (an autoencoder)", ("encoder.down_blocks.0.resnets.", "decoder.up_blocks.")),
    Program("guided-diffusion or improved-diffusion", ("time_embed.0.", "input_blocks.0.0.")),
    Program("denoising-diffusion-pytorch", ("init_conv.", "downs.0.", "final_res_block.")),
    Program("DiT", ("x_embedder.proj.", "blocks.0.adaLN_modulation.")),
    Program("EDM2 (NVIDIA)", ("emb_noise.", "enc.", "out_gain")),
    Program("EDM (NVIDIA)", ("map_layer0.", "enc.", "dec.")),
    Program("k-diffusion", ("inner_model.", "mapping.")),
    Program("score_sde", ("all_modules.0.", "all_modules.1.")),
    Program("the DDPM of Ho et al. for PyTorch", ("temb.dense.0.", "down.0.block.0.")),
    Program("pytorch-ddpm", ("time_embedding.timembedding.", "downblocks.0.")),
    Program("IDDM", ("inc.double_conv.", "sa1.")),
)


def shown(name: str, limit: int = 80) -> str:
    """A name out of a file, fit for a message: one line, printable, and not too long."""
    if not name.isprintable():
        name = ascii(name)
    if len(name) > limit:
        name = name[:limit] + "..."
    return name


def describe(head: bytes, path: Path) -> str:
    """The sentence for a file that no reader takes, from its first bytes."""
    if not head:
        return (
            f"{path} is damaged or no checkpoint: it is empty (0 bytes); copy or download it again"
        )
    for signature in SIGNATURES:
        if head.startswith(signature.magic, signature.offset):
            return f"{path} is {signature.what}"
    if WEB_PAGE.match(head):
        return (
            f"{path} is a web page, not the file that was to be downloaded; the link may need a "
            "login, or lead to a page about the file"
        )
    if ONNX.match(head):
        return f"{path} is an ONNX model, no checkpoint of PyTorch"
    if PICKLE.match(head):
        if b"torch_utils.persistence" in head:
            return f"{path} is a pickle of {network_of('EDM or StyleGAN (NVIDIA)')}"
        return f"{path} is {PYTHON_PICKLE}"
    if TENSORFLOW_FILE.search(path.name):
        return f"{path} is a part of a TensorFlow checkpoint, no checkpoint of PyTorch"
    if is_text(head):
        beginning = shown(head.decode("utf-8", "replace").strip(), 40)
        return f"{path} is damaged or no checkpoint: it is a text that begins with {beginning}"
    return (
        f"{path} is damaged or no checkpoint: it begins like neither a file of torch.save nor a "
        "safetensors file"
    )


def is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 without control characters; the last character may be cut."""
    text = head.decode("utf-8", "ignore")
    whole = len(text.encode("utf-8")) >= len(head) - 3
    return whole and all(char.isprintable() or char in "\r\n\t\f" for char in text)


def program_of(names: Iterable[str]) -> str | None:
    """The program that weights of these names belong to, or None where they are not recognised."""
    text = "\n".join(["", *names])
    for program in PROGRAMS:
        if all(starts_a_name(part, text) for part in program.parts):
            return program.name
    return None


def starts_a_name(part: str, text: str) -> bool:
    """Whether a name among the lines begins with the part, perhaps after a wrapper's prefix."""
    return f"\n{part}" in text or re.search(rf"\n[\w.]*\.{re.escape(part)}", text) is not None


def network_of(program: str) -> str:
    """ "X; its network cannot be loaded here; this project reads ..." """
    return f"{program}; its network cannot be loaded here; {READS}"
