"""How two branches become one stream of scores: gated cross-attention, and two simpler ways.

Why: the paper fuses late (DEAR, section 2, "Modality Fusion"): RGB queries depth and depth queries RGB
through two sets of gated cross-attention layers, once for each depth branch (`PairFusion`). It gives no
formula for the gate: `tanh` is Flamingo's (arXiv 2204.14198, section 3.1.2), `sigmoid` filters every
channel of every token, `none` is plain cross-attention, so that the gate's worth can be measured.
`PairConcat` and `PairSum` let nothing attend, so that the attention's worth can be measured.

Initial values, on purpose and the same everywhere here: linear layers keep torch's default, weights and
biases uniform within 1/sqrt(inputs). It looks at the inputs alone, so keys and values in one matrix start
as two matrices would (Xavier's would not). Norms start as the identity, gates at `gate_init`. Heads read
normalised features, so a stream's scores start with a standard deviation of about 0.6 (`PairSum` 0.8).

What it does not do: it does not encode video, pool branches, or combine streams (`dear` does).

Legend: B clips, Q tokens of the querying side, M tokens of the side that is read, D its width,
E the other's width, K classes, h heads.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["tanh", "sigmoid", "none"]
Direction = Literal["both", "first_to_other", "other_to_first"]
GATES = ("tanh", "sigmoid", "none")
DIRECTIONS = ("both", "first_to_other", "other_to_first")


class ScalarGate(nn.Module):
    """Multiply by tanh of one learned number (Flamingo, section 3.1.2): open to all tokens alike."""

    def __init__(self, *, init: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(init)))

    def forward(self, update_BQD: Tensor, _query_BQD: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]."""
        return self.alpha.tanh() * update_BQD


class TokenGate(nn.Module):
    """Multiply every channel of every token by sigmoid(W query + b), W [D, D]; b starts at `init`.

    The closest to the paper's words, a gate that "selectively filters and prioritizes the information".
    """

    def __init__(self, *, dim: int, init: float):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.constant_(self.linear.bias, init)

    def forward(self, update_BQD: Tensor, query_BQD: Tensor) -> Tensor:
        """[B, Q, D] twice -> [B, Q, D]."""
        return self.linear(query_BQD).sigmoid() * update_BQD


class OpenGate(nn.Module):
    """No gate: plain cross-attention."""

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
    """x_BQD + gate * CrossAttention(LN(x_BQD), LN(context_BME)), then the same with an MLP if asked.

    The residual around a gated update is Flamingo's layer (section 3.1.2); the paper (section 2) says
    which side queries and that there is a gate.

    Args:
        dim, context_dim: widths of the querying tokens and of those that are read.
        heads: must divide `dim` (which the queries, keys and values are projected to).
        gate: "tanh" (one number), "sigmoid" (per token and channel, from LN(x)) or "none".
        mlp_ratio: hidden width over `dim` of a gated MLP after the attention; 0 leaves it out.
            Flamingo's layers have one (of ratio 4); the paper mentions none.
        gate_init: the gate's value before its squashing. Flamingo starts at 0, where at first the
            gate alone gets a gradient; 0.5 (tanh 0.46, sigmoid 0.62) lets the attention learn at once.
        dropout: on the attention weights and the MLP's hidden units.

    Raises ValueError for another gate, heads that do not divide `dim`, and an MLP without hidden units.
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
            if hidden < 1:
                raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden unit at the width {dim}")
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
    """Two branches' tokens, first_BQD and other_BME, to one stream of scores logits_BK (DEAR, section 2).

    The first side queries the other and the other queries the first, each reading the other as its branch
    left it, in every layer. Each side is averaged over its tokens and normalised, both are concatenated,
    one linear layer scores. The paper says no more than who queries whom; the pooling and the head are
    the simplest that keep both sides.

    Args:
        dims: widths of first and other. heads, gate, gate_init, mlp_ratio: see `GatedCrossAttention`.
        layers: cross-attention layers each way; the paper has one.
        direction: where information flows. "first_to_other": the other queries the first, so with RGB as
            the first, depth queries RGB. "other_to_first": the first queries the other. "both": the paper.
            A side that queries nothing enters the head as its branch left it.
        dropout: in the attention and before the linear layer.

    Raises ValueError for another direction, no layer, and heads that do not divide both widths.
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
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1; PairConcat is fusion without attention")
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

        first, other = dims
        self.first_reads_other = stack(first, other, direction in ("both", "other_to_first"))
        self.other_reads_first = stack(other, first, direction in ("both", "first_to_other"))
        self.norm_first, self.norm_other = nn.LayerNorm(first), nn.LayerNorm(other)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(first + other, num_classes)

    def forward(self, first_BQD: Tensor, other_BME: Tensor) -> Tensor:
        """Tokens of both sides -> logits_BK."""
        fused_BQD, fused_BME = first_BQD, other_BME
        for layer in self.first_reads_other:
            fused_BQD = layer(fused_BQD, other_BME)
        for layer in self.other_reads_first:
            fused_BME = layer(fused_BME, first_BQD)
        pooled = [self.norm_first(fused_BQD.mean(1)), self.norm_other(fused_BME.mean(1))]
        return self.head(self.dropout(torch.cat(pooled, dim=-1)))


class PairConcat(nn.Module):
    """Baseline: head([LN(first_BD), LN(other_BE)]), pooled features side by side -> logits_BK.

    Not in the paper. It is `PairFusion`'s end without its attention.

    Args: dims: widths of first and other. dropout: before the linear layer.
    """

    def __init__(self, *, dims: tuple[int, int], num_classes: int, dropout: float = 0.0):
        super().__init__()
        first, other = dims
        self.norm_first, self.norm_other = nn.LayerNorm(first), nn.LayerNorm(other)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(first + other, num_classes)

    def forward(self, first_BD: Tensor, other_BE: Tensor) -> Tensor:
        """Pooled features of both sides -> logits_BK."""
        pooled = [self.norm_first(first_BD), self.norm_other(other_BE)]
        return self.head(self.dropout(torch.cat(pooled, dim=-1)))


class PairSum(nn.Module):
    """Baseline: head(LN(W first_BD) + LN(V other_BE)), both at the first side's width D -> logits_BK.

    Not in the paper. The norms follow the projections: without them two linear maps and a linear head
    would be one linear map of both features, which is concatenation.

    Args: dims: widths of first and other. dropout: before the linear layer.
    """

    def __init__(self, *, dims: tuple[int, int], num_classes: int, dropout: float = 0.0):
        super().__init__()
        first, other = dims
        self.project_first, self.project_other = nn.Linear(first, first), nn.Linear(other, first)
        self.norm_first, self.norm_other = nn.LayerNorm(first), nn.LayerNorm(first)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(first, num_classes)

    def forward(self, first_BD: Tensor, other_BE: Tensor) -> Tensor:
        """Pooled features of both sides -> logits_BK."""
        first_BD = self.norm_first(self.project_first(first_BD))
        other_BD = self.norm_other(self.project_other(other_BE))
        return self.head(self.dropout(first_BD + other_BD))
