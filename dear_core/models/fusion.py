"""Gated cross-attention between two branches, and the stream of scores that a pair gives.

Why: the paper fuses late (DEAR, section 2, "Modality Fusion"): RGB queries depth and depth queries RGB
through two sets of gated cross-attention layers, once for each depth branch. It gives no formula for
the gate; `tanh` is Flamingo's (arXiv 2204.14198, section 3.1.2), `sigmoid` filters every channel of
every token, `none` is plain cross-attention, so that the gate's worth can be measured.

What it does not do: it does not encode video, and it does not average streams (`dear` does).

Legend: B clips, Q tokens of the querying side, M tokens of the side that is read, D its width,
E the other's width, K classes, h heads.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["tanh", "sigmoid", "none"]
Direction = Literal["both", "a_to_b", "b_to_a"]
GATES = ("tanh", "sigmoid", "none")
DIRECTIONS = ("both", "a_to_b", "b_to_a")


class ScalarGate(nn.Module):
    """Multiply by tanh of one learned number (Flamingo)."""

    def __init__(self, *, init: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(init)))

    def forward(self, update_BQD: Tensor, _query_BQD: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]."""
        return self.alpha.tanh() * update_BQD


class TokenGate(nn.Module):
    """Multiply every channel of every token by sigmoid(linear(query))."""

    def __init__(self, *, dim: int, init: float):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.constant_(self.linear.bias, init)

    def forward(self, update_BQD: Tensor, query_BQD: Tensor) -> Tensor:
        """[B, Q, D] twice -> [B, Q, D]."""
        return self.linear(query_BQD).sigmoid() * update_BQD


class OpenGate(nn.Module):
    """No gate."""

    def forward(self, update_BQD: Tensor, _query_BQD: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]."""
        return update_BQD


def _gate(kind: Gate, *, dim: int, init: float) -> nn.Module:
    if kind == "tanh":
        return ScalarGate(init=init)
    if kind == "sigmoid":
        return TokenGate(dim=dim, init=init)
    if kind == "none":
        return OpenGate()
    raise ValueError(f"gate={kind!r} must be one of {', '.join(GATES)}")


class GatedCrossAttention(nn.Module):
    """x + gate * CrossAttention(LN(x), LN(context)), then the same with an MLP if asked.

    Args:
        dim, context_dim: widths of the querying tokens and of those that are read.
        heads: must divide `dim` (which the queries, keys and values are projected to).
        gate: "tanh" (one number), "sigmoid" (per token and channel, from LN(x)) or "none".
        mlp_ratio: hidden width over `dim` of a gated MLP after the attention; 0 leaves it out.
            Flamingo's layers have one (ratio 4); the paper mentions none.
        gate_init: the gate's value before its squashing. Flamingo starts at 0, where at first the
            gate alone gets a gradient; 0.5 (tanh 0.46, sigmoid 0.62) lets the attention learn at once.
        dropout: on the attention weights and the MLP's hidden units.

    Raises ValueError for another gate and for heads that do not divide `dim`.
    """

    def __init__(
        self,
        *,
        dim: int,
        context_dim: int,
        heads: int,
        gate: Gate = "tanh",
        mlp_ratio: float = 0.0,
        gate_init: float = 0.5,
        dropout: float = 0.0,
    ):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} must divide the width {dim} of the querying branch")
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(context_dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.gate = _gate(gate, dim=dim, init=gate_init)
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            hidden = int(dim * mlp_ratio)
            self.mlp_norm = nn.LayerNorm(dim)
            self.mlp = nn.Sequential(
                nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
            )
            self.mlp_gate = _gate(gate, dim=dim, init=gate_init)

    def forward(self, x_BQD: Tensor, context_BME: Tensor) -> Tensor:
        """x_BQD queries context_BME -> x_BQD."""
        normed_BQD = self.norm(x_BQD)
        x_BQD = x_BQD + self.gate(self._attend(normed_BQD, context_BME), normed_BQD)
        if self.mlp is not None:
            normed_BQD = self.mlp_norm(x_BQD)
            x_BQD = x_BQD + self.mlp_gate(self.mlp(normed_BQD), normed_BQD)
        return x_BQD

    def _attend(self, normed_BQD: Tensor, context_BME: Tensor) -> Tensor:
        q_BhQd = self.query(normed_BQD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.key_value(self.context_norm(context_BME)).unflatten(-1, (2, self.heads, -1))
        k_BhMd, v_BhMd = kv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out_BhQd = F.scaled_dot_product_attention(q_BhQd, k_BhMd, v_BhMd, dropout_p=dropout)
        return self.out(out_BhQd.transpose(1, 2).flatten(2))


class PairFusion(nn.Module):
    """Two branches' tokens to one stream of scores.

    Side a queries b and side b queries a, each reading the other as its branch left it. Each side is
    averaged over its tokens and normalised, both are concatenated, one linear layer scores.

    Args:
        dims: widths of a and b. heads, gate, gate_init, mlp_ratio: see `GatedCrossAttention`.
        layers: cross-attention layers on each side (0 fuses by concatenation alone).
        direction: where information flows: "a_to_b" (b queries a), "b_to_a" (a queries b), "both".
        dropout: in the attention and before the linear layer.

    Raises ValueError for another direction and for heads that do not divide both widths.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, int],
        heads: int,
        layers: int,
        gate: Gate = "tanh",
        direction: Direction = "both",
        num_classes: int,
        dropout: float = 0.0,
        gate_init: float = 0.5,
        mlp_ratio: float = 0.0,
    ):
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} must be one of {', '.join(DIRECTIONS)}")
        if heads < 1 or any(dim % heads for dim in dims):
            raise ValueError(f"heads={heads} must divide both branches' widths {dims}")

        def stack(dim: int, context_dim: int, wanted: bool) -> nn.ModuleList:
            return nn.ModuleList(
                GatedCrossAttention(
                    dim=dim,
                    context_dim=context_dim,
                    heads=heads,
                    gate=gate,
                    mlp_ratio=mlp_ratio,
                    gate_init=gate_init,
                    dropout=dropout,
                )
                for _ in range(layers if wanted else 0)
            )

        dim_a, dim_b = dims
        self.a_reads_b = stack(dim_a, dim_b, direction in ("both", "b_to_a"))
        self.b_reads_a = stack(dim_b, dim_a, direction in ("both", "a_to_b"))
        self.norm_a, self.norm_b = nn.LayerNorm(dim_a), nn.LayerNorm(dim_b)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim_a + dim_b, num_classes)

    def forward(self, a_BQD: Tensor, b_BME: Tensor) -> Tensor:
        """Tokens of both sides -> logits_BK."""
        fused_a, fused_b = a_BQD, b_BME
        for layer in self.a_reads_b:
            fused_a = layer(fused_a, b_BME)
        for layer in self.b_reads_a:
            fused_b = layer(fused_b, a_BQD)
        pooled = [self.norm_a(fused_a.mean(1)), self.norm_b(fused_b.mean(1))]
        return self.head(self.dropout(torch.cat(pooled, dim=-1)))
