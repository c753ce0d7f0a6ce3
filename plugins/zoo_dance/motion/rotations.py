"""Rotations in five notations, in torch, so that losses may look through them.

Matrices act on columns, ``y = R x``. Quaternions are (w, x, y, z). The 6-D form is the first two *rows* of the matrix
(arXiv:1812.07035, as most motion code stores it). Euler angles are intrinsic: ``order="ZXY"`` is ``Rz Rx Ry``, as in
BVH. Any leading shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AXES = "XYZ"


def from_6d(x: Tensor) -> Tensor:
    """Matrices (..., 3, 3) of (..., 6), by Gram-Schmidt."""
    one, two = x[..., :3], x[..., 3:]
    first = F.normalize(one, dim=-1)
    second = F.normalize(two - (first * two).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -2)


def to_6d(matrix: Tensor) -> Tensor:
    """(..., 6) of matrices (..., 3, 3)."""
    return matrix[..., :2, :].flatten(-2)


def from_quaternion(q: Tensor) -> Tensor:
    """Matrices of quaternions (..., 4), which need not be of length 1."""
    w, x, y, z = F.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def to_quaternion(matrix: Tensor) -> Tensor:
    """Quaternions (..., 4) with w >= 0, of the four formulas the one that divides by most."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    four = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = torch.stack(
        [
            torch.stack([four[..., 0], a, b, c], -1),
            torch.stack([a, four[..., 1], d, e], -1),
            torch.stack([b, d, four[..., 2], f], -1),
            torch.stack([c, e, f, four[..., 3]], -1),
        ],
        -2,
    )
    best = four.argmax(-1)[..., None, None].expand(*four.shape[:-1], 1, 4)
    q = F.normalize(rows.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def from_axis_angle(v: Tensor) -> Tensor:
    """Matrices of rotation vectors (..., 3): axis times angle in radians."""
    angle = v.norm(dim=-1, keepdim=True)
    # sin(a / 2) / a, which is 1/2 at 0
    scale = 0.5 * torch.sinc(angle / (2 * torch.pi))
    return from_quaternion(torch.cat([(angle / 2).cos(), v * scale], -1))


def to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation vectors (..., 3), of an angle of at most pi."""
    q = to_quaternion(matrix)
    length = q[..., 1:].norm(dim=-1, keepdim=True)
    half = torch.atan2(length, q[..., :1])
    return q[..., 1:] * torch.where(length > 1e-12, 2 * half / length.clamp(min=1e-12), 2.0)


def about(axis: int, angle: Tensor) -> Tensor:
    """Matrices of a turn about a coordinate axis, radians."""
    one, zero, cos, sin = torch.ones_like(angle), torch.zeros_like(angle), angle.cos(), angle.sin()
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rows = [[zero] * 3 for _ in range(3)]
    rows[axis][axis], rows[i][i], rows[j][j], rows[i][j], rows[j][i] = one, cos, cos, -sin, sin
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def from_euler(angles: Tensor, order: str) -> Tensor:
    """Matrices of (..., 3) angles in radians, in the order of ``order``."""
    one, two, three = (about(AXES.index(axis), angles[..., n]) for n, axis in enumerate(order))
    return one @ two @ three


def to_euler(matrix: Tensor, order: str) -> Tensor:
    """Angles (..., 3) in radians; in gimbal lock the last of them is 0."""
    i, j, k = (AXES.index(axis) for axis in order)
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    m = matrix
    flat = torch.hypot(m[..., i, i], m[..., i, j])
    middle = torch.atan2(sign * m[..., i, k], flat)
    locked = flat < 1e-7
    first = torch.where(
        locked, torch.atan2(sign * m[..., k, j], m[..., j, j]), torch.atan2(-sign * m[..., j, k], m[..., k, k])
    )
    last = torch.where(locked, torch.zeros_like(flat), torch.atan2(-sign * m[..., i, j], m[..., i, i]))
    return torch.stack([first, middle, last], -1)


def slerp(one: Tensor, two: Tensor, share: Tensor) -> Tensor:
    """Matrices ``share`` (...) of the way from one to two, along the shorter arc."""
    return one @ from_axis_angle(to_axis_angle(one.mT @ two) * share[..., None])


def between(one: Tensor, two: Tensor) -> Tensor:
    """The smallest rotation that turns the direction of (3,) ``one`` into that of ``two``."""
    one, two = F.normalize(one, dim=-1), F.normalize(two, dim=-1)
    axis, cos = torch.linalg.cross(one, two), (one * two).sum(-1)
    if cos < -1 + 1e-9:  # opposite: half a turn about anything across
        other = torch.eye(3, dtype=one.dtype)[one.abs().argmin()]
        return from_axis_angle(torch.pi * F.normalize(torch.linalg.cross(one, other), dim=-1))
    angle = torch.atan2(axis.norm(), cos)
    return from_axis_angle(F.normalize(axis, dim=-1) * angle)
