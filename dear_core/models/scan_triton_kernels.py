"""The two Triton kernels of the selective scan; `scan_triton` allocates for them and launches them.

Why apart: Triton is imported here, at the top, and only where a kernel is about to run.

A program walks through time for W channels of one clip in one direction; the direction is the launch's
second axis. Its states are a tile [M,J,G,K,Q] in registers, ordered so that Triton's default layout
spreads G over warps, K and Q over a warp's lanes, and keeps M and J within a thread: sums over M and J
are plain additions, only those over K and Q are shuffles. Time goes in chunks of S steps. A chunk's
inputs are loaded, and softplus is taken, each value by one thread; then `_row` picks the steps out of
tiles [S,M,J,G,K,Q], which costs nothing as S lies within a thread. Exponentials are 2**x, with log2(e)
multiplied into A. The backward recomputes a chunk's states from the state kept before every EVERY-th.

What they do not do: no atomic additions (scheduling changes no result), no complex A, no tensor cores.

Legend: B clips, D channels, L time steps, N states a channel (padded to M*Q), S steps a chunk,
W = G*K*J channels a program, P programs a clip; channel = (g*K + k)*J + j, state = q*M + m.
t is a step in the scan's own order, l its place in memory.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _pick(z, first, second):
    """The tuple of direction z."""
    chosen = ()
    for i in tl.static_range(len(first)):
        chosen += (tl.where(z == 0, first[i], second[i]),)
    return chosen


@triton.jit
def _softplus(t):
    """max(t, 0) + log1p(e), e = exp(-|t|); log1p(e)/e through its 8 Chebyshev nodes (error 3e-7)."""
    e = tl.exp2(tl.abs(t) * -LOG2_E)
    p = -0.00837115254944365
    p = p * e + 0.04349389981533136
    p = p * e - 0.1068500286374956
    p = p * e + 0.17687476700423233
    p = p * e - 0.24474774178478675
    p = p * e + 0.332719283833915
    p = p * e - 0.4999717452300584
    p = p * e + 0.9999997807585044
    return tl.maximum(t, 0.0) + p * e


@triton.jit
def _pinned(x):
    """x, at a place where Triton's passes over layouts stop.

    The sum over one entry costs nothing. Without it the layout of a load or store spreads into the
    arithmetic, or a conversion moves from here to before softplus: two to three times the instructions
    with Triton 3.6.
    """
    return tl.sum(x[None], axis=0)


@triton.jit
def _sigmoid(t):
    e = tl.exp2(tl.abs(t) * -LOG2_E)
    return tl.where(t >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _over_channels(x_SW, shape: tl.constexpr):
    """[S, W] -> [S, M, J, G, K, Q]. Indexing with None makes Triton change to the tile's layout."""
    S: tl.constexpr = x_SW.shape[0]
    x_SJGK = tl.permute(tl.reshape(_pinned(x_SW), (S, shape[2], shape[3], shape[1])), (0, 3, 1, 2))
    x = x_SJGK[:, None, :, :, :, None]
    return tl.broadcast_to(x, (S, shape[0], shape[1], shape[2], shape[3], shape[4]))


@triton.jit
def _over_states(x_SN, shape: tl.constexpr):
    """[S, N] -> [S, M, J, G, K, Q]."""
    S: tl.constexpr = x_SN.shape[0]
    x_SMQ = tl.permute(tl.reshape(_pinned(x_SN), (S, shape[4], shape[0])), (0, 2, 1))
    x = x_SMQ[:, :, None, None, None, :]
    return tl.broadcast_to(x, (S, shape[0], shape[1], shape[2], shape[3], shape[4]))


@triton.jit
def _row(tile, s: tl.constexpr):
    """tile[s]. The sum is one of integers, in which the compiler drops the zeros."""
    index = tl.arange(0, tile.shape[0])[:, None, None, None, None, None]
    bits = tl.where(index == s, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _sum_states(x):
    """[M, J, G, K, Q] -> [J, G, K]."""
    return tl.sum(tl.sum(x, axis=0), axis=3)


@triton.jit
def _sum_channels(x):
    """[M, J, G, K, Q] -> [M, G, Q]: the warps stay apart until the chunk's end."""
    return tl.sum(tl.sum(x, axis=1), axis=2)


@triton.jit
def _put_channels(y, value_JGK, s: tl.constexpr):
    """Put step s into y [S/Q, J, G, K, Q]; step a*Q + q is kept by lane q."""
    a, q = tl.arange(0, y.shape[0]), tl.arange(0, y.shape[4])
    step = a[:, None, None, None, None] * y.shape[4] + q[None, None, None, None, :]
    return tl.where(step == s, value_JGK[None, :, :, :, None], y)


@triton.jit
def _put_states(y, value_MGQ, s: tl.constexpr):
    """Put step s into y [M, 1, G, S, Q]; the lanes that had channels keep steps."""
    step = tl.arange(0, y.shape[3])[None, None, None, :, None]
    return tl.where(step == s, value_MGQ[:, None, :, None, :], y)


@triton.jit
def _as_rows(y):
    """[S/Q, J, G, K, Q] -> [S, W]."""
    S: tl.constexpr = y.shape[0] * y.shape[4]
    return _pinned(tl.reshape(tl.permute(y, (0, 4, 2, 3, 1)), (S, y.shape[1] * y.shape[2] * y.shape[3])))


@triton.jit
def _places(shape: tl.constexpr):
    """The channel and the state of each entry of [M, J, G, K, Q]."""
    m = tl.arange(0, shape[0])[:, None, None, None, None]
    j = tl.arange(0, shape[1])[None, :, None, None, None]
    g = tl.arange(0, shape[2])[None, None, :, None, None]
    k = tl.arange(0, shape[3])[None, None, None, :, None]
    q = tl.arange(0, shape[4])[None, None, None, None, :]
    return (g * shape[3] + k) * shape[1] + j, q * shape[0] + m


@triton.jit
def _constants(A, bias, D, first_channel, channels, states, shape: tl.constexpr):
    """A * log2(e) as a tile, bias_W, D_W."""
    d_W = first_channel + tl.arange(0, shape[1] * shape[2] * shape[3])
    d, n = _places(shape)
    inside = (first_channel + d < channels) & (n < states)
    A = _pinned(tl.load(A + (first_channel + d) * states + n, inside, other=0.0))
    bias_W = tl.load(bias + d_W, d_W < channels, other=0.0)
    return A * LOG2_E, bias_W, tl.load(D + d_W, d_W < channels, other=0.0)


@triton.jit
def _load(base, l_S1, x_1X, stride_l, stride_x, inside):
    return tl.load(base + (l_S1 * stride_l + x_1X * stride_x), inside, other=0.0)


@triton.jit
def _store(base, l_S1, x_1X, stride_l, stride_x, inside, value):
    tl.store(base + (l_S1 * stride_l + x_1X * stride_x), value.to(base.dtype.element_ty), inside)


@triton.jit
def _where(chunk, place, ends, sizes: tl.constexpr):
    """A chunk's places in memory, its channels and states, and what of [S, W] and [S, N] exists."""
    L, l_first, sign = ends
    first_channel, channels, states = place
    S: tl.constexpr = sizes[0]
    t_S1 = chunk * S + tl.arange(0, S)[:, None]
    d_1W = first_channel + tl.arange(0, sizes[1])[None, :]
    n_1N = tl.arange(0, sizes[2])[None, :]
    in_SW, in_SN = (t_S1 < L) & (d_1W < channels), (t_S1 < L) & (n_1N < states)
    return l_first + sign * t_S1, d_1W, n_1N, in_SW, in_SN


@triton.jit
def _fetch(chunk, place, ends, u, delta, B, steps, sizes: tl.constexpr):
    """u_SW, delta_SW and B_SN of a chunk as they are in memory."""
    l_S1, d_1W, n_1N, in_SW, in_SN = _where(chunk, place, ends, sizes)
    u_SW = _load(u, l_S1, d_1W, steps[0], steps[1], in_SW)
    delta_SW = _load(delta, l_S1, d_1W, steps[2], steps[3], in_SW)
    return u_SW, delta_SW, _load(B, l_S1, n_1N, steps[4], steps[5], in_SN)


@triton.jit
def _prepare(fetched, bias_W, in_SW, SOFTPLUS: tl.constexpr, shape: tl.constexpr):
    """u_SW, the biased delta, the step size dt_SW, and tiles of dt, dt*u and B."""
    u_SW, t_SW = fetched[0].to(tl.float32), fetched[1].to(tl.float32) + bias_W[None, :]
    dt_SW = tl.where(in_SW, _softplus(t_SW) if SOFTPLUS else t_SW, 0.0)
    dt, drive = _over_channels(dt_SW, shape), _over_channels(dt_SW * u_SW, shape)
    return u_SW, t_SW, dt_SW, dt, drive, _over_states(fetched[2].to(tl.float32), shape)


@triton.jit
def forward(
    first, second, strides, L, channels, states, programs,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr, EVERY: tl.constexpr, VEC: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, J: tl.constexpr, G: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """y and, with SAVE, the state before every EVERY-th chunk: starts [B, P, chunks, W, N]."""
    shape: tl.constexpr = (M, J, G, K, Q)
    sizes: tl.constexpr = (S, J * G * K, M * Q)
    u, delta, A, B, C, D, bias, starts, y, l_first, sign = _pick(tl.program_id(1), first, second)
    u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, y_b, y_d, y_l = strides
    p, b = tl.program_id(0) % programs, (tl.program_id(0) // programs).to(tl.int64)
    place, ends = (p * sizes[1], channels, states), (L, l_first, sign)
    rate, bias_W, D_W = _constants(A, bias, D, p * sizes[1], channels, states, shape)
    d, n = _places(shape)
    chunks = tl.cdiv(L, S)
    starts += (b * programs + p) * tl.cdiv(chunks, EVERY) * (sizes[1] * sizes[2]) + d * sizes[2] + n
    u, delta, B, C = u + b * u_b, delta + b * delta_b, B + b * (B_b * VEC), C + b * (C_b * VEC)
    y += b * y_b
    steps = (u_l, u_d, delta_l, delta_d, B_l * VEC, B_n)
    h = tl.zeros(shape, tl.float32)
    for chunk in range(chunks):
        if SAVE and chunk % EVERY == 0:
            tl.store(starts + (chunk // EVERY) * (sizes[1] * sizes[2]), h)
        l_S1, d_1W, n_1N, in_SW, in_SN = _where(chunk, place, ends, sizes)
        fetched = _fetch(chunk, place, ends, u, delta, B, steps, sizes)
        C_SN = _load(C, l_S1, n_1N, C_l * VEC, C_n, in_SN)
        u_SW, _, _, dt, drive, B_all = _prepare(fetched, bias_W, in_SW, SOFTPLUS, shape)
        C_all = _over_states(C_SN.to(tl.float32), shape)
        y_all = tl.zeros((S // Q, J, G, K, Q), tl.float32)
        for s in tl.static_range(S):
            h = tl.exp2(_row(dt, s) * rate) * h + _row(drive, s) * _row(B_all, s)
            y_all = _put_channels(y_all, _sum_states(h * _row(C_all, s)), s)
        y_SW = _as_rows(y_all) + D_W[None, :] * u_SW
        _store(y, l_S1, d_1W, y_l, y_d, in_SW, y_SW)


@triton.jit
def _reverse_steps(h, g, dA, rate, dt, drive, dy_SW, B, C_SN, S: tl.constexpr, shape: tl.constexpr):
    """A chunk from its first state h: forward once more keeping all states, then backward.

    g is the gradient that reaches the chunk's last state from later ones, then its first state's.
    Gives g, dA, and the gradients of dt*u, of dt through the decay (over ln 2), of B and of C.
    dy and C are spread over the tile only when needed: the last tile read stays in shared memory.
    """
    hs, decays = (h,), ()
    for s in tl.static_range(S):
        decays += (tl.exp2(_row(dt, s) * rate),)
        hs += (decays[s] * hs[s] + _row(drive, s) * _row(B, s),)
    dy, C = _over_channels(dy_SW, shape), _over_states(C_SN, shape)
    ddrive = tl.zeros((S // shape[4], shape[1], shape[2], shape[3], shape[4]), tl.float32)
    ddt = ddrive
    dB = tl.zeros((shape[0], 1, shape[2], S, shape[4]), tl.float32)
    dC = dB
    for s in tl.static_range(S - 1, -1, -1):
        dy_s = _row(dy, s)
        g += dy_s * _row(C, s)
        dB = _put_states(dB, _sum_channels(g * _row(drive, s)), s)
        dC = _put_states(dC, _sum_channels(dy_s * hs[s + 1]), s)
        ddrive = _put_channels(ddrive, _sum_states(g * _row(B, s)), s)
        g *= decays[s]
        through = g * hs[s]
        dA += through * _row(dt, s)
        ddt = _put_channels(ddt, _sum_states(through * rate), s)
    return g, dA, _as_rows(ddrive), _as_rows(ddt), dB, dC


@triton.jit
def _store_states(base, l_first, sign, chunk, L, value):
    """Sum value [M, 1, G, S, Q] over the warps into rows of [L, N]."""
    M: tl.constexpr = value.shape[0]
    S: tl.constexpr = value.shape[3]
    Q: tl.constexpr = value.shape[4]
    n = tl.arange(0, Q)[None, None, :] * M + tl.arange(0, M)[:, None, None]
    t = chunk * S + tl.arange(0, S)[None, :, None]
    inside = (t < L) & (n < M * Q)
    tl.store(base + ((l_first + sign * t) * (M * Q) + n), tl.sum(tl.sum(value, axis=2), axis=1), inside)


@triton.jit
def backward(
    first, second, strides, L, channels, states, programs, batch,
    SOFTPLUS: tl.constexpr, EVERY: tl.constexpr, VEC: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, J: tl.constexpr, G: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """du, ddelta; dA [B, D, N], dD and dbias [B, D]; dB and dC [P, B, L, N], each program's part."""
    shape: tl.constexpr = (M, J, G, K, Q)
    sizes: tl.constexpr = (S, J * G * K, M * Q)
    (
        u, delta, A, B, C, D, bias, starts, dy, du, ddelta, dA, dB, dC, dD, dbias, l_first, sign,
    ) = _pick(tl.program_id(1), first, second)  # fmt: skip
    (
        u_b, u_d, u_l, delta_b, delta_d, delta_l, B_b, B_n, B_l, C_b, C_n, C_l, dy_b, dy_d, dy_l,
        du_b, du_d, du_l, ddelta_b, ddelta_d, ddelta_l,
    ) = strides  # fmt: skip
    p, b = tl.program_id(0) % programs, (tl.program_id(0) // programs).to(tl.int64)
    place, ends = (p * sizes[1], channels, states), (L, l_first, sign)
    rate, bias_W, D_W = _constants(A, bias, D, p * sizes[1], channels, states, shape)
    d, n = _places(shape)
    chunks = tl.cdiv(L, S)
    starts += (b * programs + p) * tl.cdiv(chunks, EVERY) * (sizes[1] * sizes[2]) + d * sizes[2] + n
    u, delta, B, C = u + b * u_b, delta + b * delta_b, B + b * (B_b * VEC), C + b * (C_b * VEC)
    dy, du, ddelta = dy + b * dy_b, du + b * du_b, ddelta + b * ddelta_b
    dB, dC = dB + (p * batch + b) * L * sizes[2], dC + (p * batch + b) * L * sizes[2]
    steps = (u_l, u_d, delta_l, delta_d, B_l * VEC, B_n)
    g, dA_sum = tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32)
    dD_SW, dbias_SW = tl.zeros((S, J * G * K), tl.float32), tl.zeros((S, J * G * K), tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        h = _pinned(tl.load(starts + (chunk // EVERY) * (sizes[1] * sizes[2])))
        for earlier in range(chunk // EVERY * EVERY, chunk):
            _, _, _, in_SW, _ = _where(earlier, place, ends, sizes)
            fetched = _fetch(earlier, place, ends, u, delta, B, steps, sizes)
            _, _, _, dt, drive, B_all = _prepare(fetched, bias_W, in_SW, SOFTPLUS, shape)
            for s in tl.static_range(S):
                h = tl.exp2(_row(dt, s) * rate) * h + _row(drive, s) * _row(B_all, s)
        l_S1, d_1W, n_1N, in_SW, in_SN = _where(chunk, place, ends, sizes)
        fetched = _fetch(chunk, place, ends, u, delta, B, steps, sizes)
        dy_SW = _load(dy, l_S1, d_1W, dy_l, dy_d, in_SW).to(tl.float32)
        C_SN = _load(C, l_S1, n_1N, C_l * VEC, C_n, in_SN).to(tl.float32)
        u_SW, t_SW, dt_SW, dt, drive, B_all = _prepare(fetched, bias_W, in_SW, SOFTPLUS, shape)
        g, dA_sum, ddrive_SW, ddt_SW, dB_all, dC_all = _reverse_steps(
            h, g, dA_sum, rate, dt, drive, dy_SW, B_all, C_SN, S, shape
        )
        ddelta_SW = ddrive_SW * u_SW + ddt_SW * LN_2
        if SOFTPLUS:
            ddelta_SW *= _sigmoid(t_SW)
        dD_SW += dy_SW * u_SW
        dbias_SW += tl.where(in_SW, ddelta_SW, 0.0)
        _store(du, l_S1, d_1W, du_l, du_d, in_SW, ddrive_SW * dt_SW + dy_SW * D_W[None, :])
        _store(ddelta, l_S1, d_1W, ddelta_l, ddelta_d, in_SW, ddelta_SW)
        _store_states(dB, l_first, sign, chunk, L, dB_all)
        _store_states(dC, l_first, sign, chunk, L, dC_all)
    d_W = p * sizes[1] + tl.arange(0, J * G * K)
    tl.store(dA + (b * channels + p * sizes[1] + d) * sizes[2] + n, dA_sum, p * sizes[1] + d < channels)
    tl.store(dD + b * channels + d_W, tl.sum(dD_SW, axis=0), d_W < channels)
    tl.store(dbias + b * channels + d_W, tl.sum(dbias_SW, axis=0), d_W < channels)
