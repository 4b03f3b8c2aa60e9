"""The residual block, which is told the time step and the class."""

from collections.abc import Callable

from torch import Tensor, nn

from model.modules.layers import activation, zero_init
from model.modules.norm_act import norm_act

TIME_EMBEDDINGS = ("additive", "scale_shift")


class ResBlock(nn.Module):
    """(B,C_in,H,W), activated condition (B,E) -> (B,C_out,H,W).

    `time_embedding` is "additive" (the projected condition is added before the second norm, DDPM)
    or "scale_shift" (it scales and shifts the normalised features; ADM, Dhariwal & Nichol
    2105.05233). `norm` makes a layer from a number of channels; `kernels` are the sizes of the two
    convolutions: (3, 3), or (1, 3) in Darknet's block.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_dim: int,
        dropout: float,
        time_embedding: str,
        act: str,
        norm: Callable[[int], nn.Module],
        kernels: tuple[int, int] = (3, 3),
    ):
        super().__init__()
        if time_embedding not in TIME_EMBEDDINGS:
            known = " or ".join(map(repr, TIME_EMBEDDINGS))
            raise ValueError(f"time_embedding is {known}, not {time_embedding!r}")
        self.scale_shift = time_embedding == "scale_shift"
        self.act = activation(act)
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, kernels[0], padding=kernels[0] // 2)
        self.emb = nn.Linear(emb_dim, 2 * c_out if self.scale_shift else c_out)
        self.norm2 = norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, kernels[1], padding=kernels[1] // 2))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(norm_act(self.norm1, self.act, x))  # (B, C_out, H, W)
        emb = self.emb(emb)[:, :, None, None]  # (B, C_out or 2 C_out, 1, 1)
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = norm_act(self.norm2, self.act, h, 1 + scale, shift)
        else:
            h = norm_act(self.norm2, self.act, h.add_(emb))
        return self.conv2(self.dropout(h)).add_(self.skip(x))
