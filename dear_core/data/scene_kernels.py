"""Compiled kernels of the synthetic scenes: ray casting with a z-buffer, and the two sensors.

Why: a clip has some thirty frames of 77 thousand pixels, and the whole data set must be made in
minutes on two cores. Objects are intersected in canonical units (centre at distance 1, size =
apparent size) and only the resulting distance is scaled, so the colours do not depend on how far
an object really is. There are no shadows: they would tell the distance.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# Columns of a row of bodies_NK.
BOX, CENTRE, INVERSE_SEMI, FRAME, DEPTH, TEXTURE, REPEAT = 0, 1, 4, 7, 16, 17, 18
BODY_COLUMNS = 19
# Columns of a row of planes_PK.
NORMAL, OFFSET, AXIS_U, AXIS_V, SHADE = 0, 3, 4, 7, 10
PLANE_COLUMNS = 11


@numba.njit(cache=True, inline="always")
def _sample(texture_SSC, u, v, shade, colour_HWC, i, j):
    """Bilinear, repeating look-up at (u, v) in turns; writes shade * colour into pixel (i, j)."""
    side = texture_SSC.shape[0]
    x, y = u * side, v * side
    left, top = math.floor(x), math.floor(y)
    dx, dy = np.float32(x - left), np.float32(y - top)
    x0, y0 = int(left) & (side - 1), int(top) & (side - 1)
    x1, y1 = (x0 + 1) & (side - 1), (y0 + 1) & (side - 1)
    one = np.float32(1.0)
    for c in range(3):
        upper = texture_SSC[y0, x0, c] * (one - dx) + texture_SSC[y0, x1, c] * dx
        lower = texture_SSC[y1, x0, c] * (one - dx) + texture_SSC[y1, x1, c] * dx
        colour_HWC[i, j, c] = np.float32(shade) * (upper * (one - dy) + lower * dy)


@numba.njit(cache=True)
def _paint_planes(colour_HWC, z_HW, camera_33, focal, planes_PK, textures_NSSC):
    height, width = z_HW.shape
    for i in range(height):
        y = (i + 0.5 - 0.5 * height) / focal
        for j in range(width):
            x = (j + 0.5 - 0.5 * width) / focal
            wx = camera_33[0, 0] * x + camera_33[0, 1] * y + camera_33[0, 2]
            wy = camera_33[1, 0] * x + camera_33[1, 1] * y + camera_33[1, 2]
            wz = camera_33[2, 0] * x + camera_33[2, 1] * y + camera_33[2, 2]
            best, nearest = -1, 1e3
            for p in range(planes_PK.shape[0]):
                slope = planes_PK[p, 0] * wx + planes_PK[p, 1] * wy + planes_PK[p, 2] * wz
                if slope > 1e-6 and planes_PK[p, OFFSET] < nearest * slope:
                    best, nearest = p, planes_PK[p, OFFSET] / slope
            z_HW[i, j] = nearest
            if best < 0:
                colour_HWC[i, j] = 0.0
                continue
            plane_K = planes_PK[best]
            u = nearest * (plane_K[4] * wx + plane_K[5] * wy + plane_K[6] * wz)
            v = nearest * (plane_K[7] * wx + plane_K[8] * wy + plane_K[9] * wz)
            _sample(textures_NSSC[best], u, v, plane_K[SHADE], colour_HWC, i, j)


@numba.njit(cache=True)
def _hit(box, ox, oy, oz, dx, dy, dz):
    """First hit of o + t*d with the unit ball or unit cube: (t, axis of the cube's face) or -1."""
    if not box:
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        root = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
        if root <= 0.0:
            return -1.0, 0
        return (-b - math.sqrt(root)) / a, 0
    enter, leave, axis = -1e9, 1e9, 0
    for k in range(3):
        o, d = (ox, dx) if k == 0 else ((oy, dy) if k == 1 else (oz, dz))
        d = d if abs(d) > 1e-9 else 1e-9
        first, second = (-1.0 - o) / d, (1.0 - o) / d
        if first > second:
            first, second = second, first
        if first > enter:
            enter, axis = first, k
        leave = min(leave, second)
    if enter >= leave or enter <= 0.0:
        return -1.0, 0
    return enter, axis


@numba.njit(cache=True)
def _surface(body_K, axis, hx, hy, hz, light_3, ambient):
    """Texture place (u, v) and Lambert shade at the local point h of a body."""
    box = body_K[BOX] > 0.5
    nx, ny, nz = hx, hy, hz
    if box:
        nx = math.copysign(1.0, hx) if axis == 0 else 0.0
        ny = math.copysign(1.0, hy) if axis == 1 else 0.0
        nz = math.copysign(1.0, hz) if axis == 2 else 0.0
        u = hy if axis == 0 else hx
        v = hy if axis == 2 else hz
        u, v = 0.5 * u + 0.5, 0.5 * v + 0.5
    else:
        u = math.atan2(hx, hz) / (2.0 * math.pi) * 2.0
        v = math.asin(min(1.0, max(-1.0, hy))) / math.pi
    nx, ny, nz = nx * body_K[4], ny * body_K[5], nz * body_K[6]
    gx = body_K[7] * nx + body_K[8] * ny + body_K[9] * nz
    gy = body_K[10] * nx + body_K[11] * ny + body_K[12] * nz
    gz = body_K[13] * nx + body_K[14] * ny + body_K[15] * nz
    dot = gx * light_3[0] + gy * light_3[1] + gz * light_3[2]
    lambert = max(0.0, dot / math.sqrt(gx * gx + gy * gy + gz * gz))
    return u * body_K[REPEAT], v * body_K[REPEAT], ambient + (1.15 - ambient) * lambert


@numba.njit(cache=True)
def _paint_body(colour_HWC, z_HW, camera_33, focal, body_K, texture_SSC, light_3, ambient):
    height, width = z_HW.shape
    cx, cy, cz = body_K[1], body_K[2], body_K[3]
    reach = math.sqrt(3.0) / min(body_K[4], min(body_K[5], body_K[6]))
    vx = camera_33[0, 0] * cx + camera_33[1, 0] * cy + camera_33[2, 0] * cz
    vy = camera_33[0, 1] * cx + camera_33[1, 1] * cy + camera_33[2, 1] * cz
    vz = camera_33[0, 2] * cx + camera_33[1, 2] * cy + camera_33[2, 2] * cz
    column, row = vx / vz * focal + 0.5 * width, vy / vz * focal + 0.5 * height
    around = reach / vz * focal * 1.4 + 3.0
    ox = -(body_K[7] * cx + body_K[10] * cy + body_K[13] * cz) * body_K[4]
    oy = -(body_K[8] * cx + body_K[11] * cy + body_K[14] * cz) * body_K[5]
    oz = -(body_K[9] * cx + body_K[12] * cy + body_K[15] * cz) * body_K[6]
    for i in range(max(0, int(row - around)), min(height, int(row + around) + 1)):
        y = (i + 0.5 - 0.5 * height) / focal
        for j in range(max(0, int(column - around)), min(width, int(column + around) + 1)):
            x = (j + 0.5 - 0.5 * width) / focal
            wx = camera_33[0, 0] * x + camera_33[0, 1] * y + camera_33[0, 2]
            wy = camera_33[1, 0] * x + camera_33[1, 1] * y + camera_33[1, 2]
            wz = camera_33[2, 0] * x + camera_33[2, 1] * y + camera_33[2, 2]
            dx = (body_K[7] * wx + body_K[10] * wy + body_K[13] * wz) * body_K[4]
            dy = (body_K[8] * wx + body_K[11] * wy + body_K[14] * wz) * body_K[5]
            dz = (body_K[9] * wx + body_K[12] * wy + body_K[15] * wz) * body_K[6]
            t, axis = _hit(body_K[BOX] > 0.5, ox, oy, oz, dx, dy, dz)
            if t <= 0.0 or t * body_K[DEPTH] >= z_HW[i, j]:
                continue
            z_HW[i, j] = t * body_K[DEPTH]
            u, v, shade = _surface(body_K, axis, ox + t * dx, oy + t * dy, oz + t * dz, light_3, ambient)
            _sample(texture_SSC, u, v, shade, colour_HWC, i, j)


@numba.njit(cache=True)
def render_frame(colour_HWC, z_HW, camera_33, focal, planes_PK, bodies_NK, textures_NSSC, light_3, ambient):
    """Fill linear colour (0..255, float32) and distance along the optical axis of one frame.

    `focal` is in pixels; `camera_33` turns camera rays into the scene; the first P textures are
    the planes', a body's texture is named by its TEXTURE column.
    """
    _paint_planes(colour_HWC, z_HW, camera_33, focal, planes_PK, textures_NSSC)
    for n in range(bodies_NK.shape[0]):
        texture_SSC = textures_NSSC[int(bodies_NK[n, TEXTURE])]
        _paint_body(colour_HWC, z_HW, camera_33, focal, bodies_NK[n], texture_SSC, light_3, ambient)


@numba.njit(cache=True)
def expose(colour_HWC, noise_AB, row, column, gain, out_HWC):
    """The colour sensor: a slight lens blur, `gain`, noise read at (row, column), 8 bits."""
    height, width, _ = colour_HWC.shape
    g = np.float32(gain)
    for i in range(height):
        up, down = max(i - 1, 0), min(i + 1, height - 1)
        for j in range(width):
            left, right = max(j - 1, 0), min(j + 1, width - 1)
            noise = noise_AB[row + i, column + j]
            for c in range(3):
                around = (
                    colour_HWC[up, j, c]
                    + colour_HWC[down, j, c]
                    + colour_HWC[i, left, c]
                    + colour_HWC[i, right, c]
                )
                value = np.float32(0.52) * colour_HWC[i, j, c] + np.float32(0.12) * around
                value = g * value + noise + np.float32(0.5)
                out_HWC[i, j, c] = np.uint8(min(max(value, np.float32(0.0)), np.float32(255.0)))


@numba.njit(cache=True)
def resample(z_HW, rows_RK, row_from_R, columns_CK, column_from_C, out_RC):
    """Inverse distance, weighted over K taps of each axis (indices are clamped to the image)."""
    height, width = z_HW.shape
    taps = rows_RK.shape[1]
    inverse_HW = np.float32(1.0) / z_HW
    middle_HC = np.zeros((height, out_RC.shape[1]), np.float32)
    for i in range(height):
        for c in range(out_RC.shape[1]):
            total = np.float32(0.0)
            for k in range(taps):
                j = min(max(column_from_C[c] + k, 0), width - 1)
                total += columns_CK[c, k] * inverse_HW[i, j]
            middle_HC[i, c] = total
    for r in range(out_RC.shape[0]):
        out_RC[r] = 0.0
        for k in range(taps):
            i = min(max(row_from_R[r] + k, 0), height - 1)
            for c in range(out_RC.shape[1]):
                out_RC[r, c] += rows_RK[r, k] * middle_HC[i, c]
