"""Where strokes, nuclei and rings lie in four synthetic textures. Inspired by histology; not tissue.

Knows places and layers; intensities, channels and the imager's effects belong to models.srh.phantom.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.srh import stamps
from models.srh.lattice import Floats, Points, noise_at
from models.srh.scene import Around, Direction, Scene, any_direction, choose, only


def sheet(scene: Scene) -> None:
    """The part that all classes share: oval nuclei, short fibres, no architecture."""
    points = scene.points(101, scene.style.px(21))
    points = points.where(scene.sheet(points.y, points.x) & (points.u[3] < np.float32(scene.style.density)))
    flow_y, flow_x = scene.flow(102, points.y, points.x, 1.2, 160.0)
    loose = any_direction(points)
    scene.nuclei(points, (flow_y + 2 * loose[0], flow_x + 2 * loose[1]), 8, 5)
    points = scene.points(104, scene.style.px(12))
    points = points.where(scene.sheet(points.y, points.x))
    flow_y, flow_x = scene.flow(102, points.y, points.x, 1.2, 160.0)
    loose = any_direction(points)
    scene.strokes(scene.layers.fibre, points, (flow_y + 2 * loose[0], flow_x + 2 * loose[1]), 24, 3)


def meningioma(scene: Scene) -> None:
    """Whorls: onion-like layers of flattened cells around a centre, some with a psammoma body."""
    style, spacing, share, salt = scene.style, scene.style.px(170), 0.85, 201
    whorls = scene.centres(salt, spacing, share)
    radii = [style.px(52 + 24 * u) for u in whorls.u[1].tolist()]
    variants = (whorls.u[2] * 6).astype(np.int64).tolist()
    pitch = style.px(13)
    onions = [stamps.onion(r, pitch, v) for r, v in zip(radii, variants, strict=True)]
    scene.stamp(scene.layers.fibre, whorls, onions)
    scene.stamp(scene.layers.fibre, whorls, onions)
    bodies = whorls.where(whorls.u[3] < np.float32(0.2))
    scene.stamp(scene.layers.collagen, bodies, [stamps.onion(style.px(20), style.px(6), 1)] * len(bodies.y))
    for salt_points, step in ((202, 17), (203, 10)):
        points = scene.points(salt_points, style.px(step))
        near = scene.around(salt, spacing, share, points)
        inside = near.present & (near.r < np.float32(style.scale) * (52 + 24 * near.centre.u[1]))
        keep = inside | ~scene.sheet(points.y, points.x)
        if step == 17:
            keep &= points.u[3] < np.float32(style.density)
            points = near.onto_rings(points, inside, pitch)
        direction = choose(inside, (near.dx, -near.dy), scene.flow(204, points.y, points.x, 1.0, 170.0))
        points, direction = points.where(keep), only(direction, keep)
        if step == 17:
            scene.nuclei(points, direction, 10, 4)
        else:
            scene.strokes(scene.layers.fibre, points, direction, 26, 3)


def _fascicles(scene: Scene, points: Points) -> Direction:
    """Bundles that cross: a gently waving direction, turned by a right angle in some regions."""
    flow_y, flow_x = scene.flow(301, points.y, points.x, 0.45, 230.0)
    crossing = noise_at(scene.key(303), points.y, points.x, 250.0 * scene.style.scale) > np.float32(0.25)
    return choose(crossing, (flow_x + np.float32(0.4) * flow_y, -flow_y), (flow_y, flow_x))


def schwannoma(scene: Scene) -> None:
    """Spindle bundles: long parallel fibres and thin nuclei, in places in palisades; loose parts with vacuoles."""
    style = scene.style
    points = scene.points(304, style.px(17))
    points = points.where(~scene.sheet(points.y, points.x) & (points.u[3] < np.float32(style.density)))
    along = points.y * np.float32(style.turn[0]) + points.x * np.float32(style.turn[1])
    phase = (along + 10 * noise_at(scene.key(306), points.y, points.x, 60.0)) / np.float32(style.px(64))
    palisade = noise_at(scene.key(307), points.y, points.x, 260.0) > np.float32(0.2)
    loose = noise_at(scene.key(308), points.y, points.x, 240.0) < np.float32(-0.5)
    keep = (~palisade | (phase - np.floor(phase) < np.float32(0.4))) & ~(loose & (points.u[2] < 0.6))
    points = points.where(keep)
    scene.nuclei(points, _fascicles(scene, points), 14, 3)
    points = scene.points(305, style.px(11))
    loose = noise_at(scene.key(308), points.y, points.x, 240.0) < np.float32(-0.5)
    points = points.where(~scene.sheet(points.y, points.x) & ~(loose & (points.u[2] < 0.6)))
    scene.strokes(scene.layers.fibre, points, _fascicles(scene, points), 52, 3)
    holes = scene.points(309, style.px(30))
    loose = noise_at(scene.key(308), holes.y, holes.x, 240.0) < np.float32(-0.5)
    holes = holes.where(loose & ~scene.sheet(holes.y, holes.x) & (holes.u[0] < 0.5))
    variants = (holes.u[1] * 4).astype(np.int64).tolist()
    scene.stamp(scene.layers.lumen, holes, [stamps.disc(style.px(6), v) for v in variants], over=True)


def _in_nest(scene: Scene, points: Points) -> NDArray[np.bool_]:
    level = noise_at(scene.key(401), points.y, points.x, 120.0 * scene.style.scale)
    level = level + np.float32(0.35) * noise_at(scene.key(402), points.y, points.x, 45.0)
    return level > np.float32(-0.18)


def metastasis(scene: Scene) -> None:
    """Clusters of large uneven nuclei in a fibrous stroma, and glands: nuclei standing around a lumen."""
    style, spacing, share, salt = scene.style, scene.style.px(210), 0.75, 403
    glands = scene.centres(salt, spacing, share)
    radii = [style.px(16 + 22 * u) for u in glands.u[1].tolist()]
    variants = (glands.u[2] * 6).astype(np.int64).tolist()
    scene.stamp(
        scene.layers.lumen, glands, [stamps.disc(r, v) for r, v in zip(radii, variants, strict=True)], over=True
    )
    for salt_points, step, painter in ((404, 25, _nest_nuclei), (405, 13, _stroma), (407, 10, _rim)):
        points = scene.points(salt_points, style.px(step))
        near = scene.around(salt, spacing, share, points)
        border = np.float32(style.scale) * (16 + 22 * near.centre.u[1])
        depth = np.where(near.present, near.r - border, np.float32(1e3))
        keep = (depth > 0) & (~scene.sheet(points.y, points.x) | (depth < 40))
        near = Around(near.centre, near.dy[keep], near.dx[keep], near.r[keep], near.present[keep])
        painter(scene, points.where(keep), near, depth[keep])


def _nest_nuclei(scene: Scene, points: Points, near: Around, depth: Floats) -> None:
    rim = depth < np.float32(scene.style.px(26))
    nest = (_in_nest(scene, points) | (depth < 60)) & (points.u[3] < np.float32(scene.style.density + 0.15))
    for part, size in ((points.u[0] < 0.4, (12, 10)), (points.u[0] >= 0.4, (9, 7))):
        keep = nest & ~rim & part
        scene.nuclei(points.where(keep), only(any_direction(points), keep), *size)


def _rim(scene: Scene, points: Points, near: Around, depth: Floats) -> None:
    """The columnar nuclei of a gland, standing on its border."""
    rim = (depth > np.float32(scene.style.px(9))) & (depth < np.float32(scene.style.px(17)))
    scene.nuclei(points.where(rim), only((near.dy, near.dx), rim), 11, 4)


def _stroma(scene: Scene, points: Points, near: Around, depth: Floats) -> None:
    nest = _in_nest(scene, points) | (depth < 60)
    rim = depth < np.float32(scene.style.px(26))
    direction = choose(rim, (near.dy, near.dx), any_direction(points))
    scene.strokes(scene.layers.fibre, points.where(nest), only(direction, nest), 18, 4)
    flow = only(scene.flow(406, points.y, points.x, 1.1, 140.0), ~nest)
    stroma = points.where(~nest)
    scene.strokes(scene.layers.collagen, stroma, flow, 44, 3)
    few = stroma.u[0] < 0.12
    scene.nuclei(stroma.where(few), only(flow, few), 10, 3)


def ependymoma(scene: Scene) -> None:
    """Perivascular rosettes: a vessel, a zone of radial processes without nuclei, round nuclei beyond."""
    style, spacing, share, salt = scene.style, scene.style.px(205), 0.85, 501
    vessels = scene.centres(salt, spacing, share)
    radii = [style.px(8 + 8 * u) for u in vessels.u[1].tolist()]
    variants = (vessels.u[2] * 6).astype(np.int64).tolist()
    pairs = list(zip(radii, variants, strict=True))
    scene.stamp(scene.layers.lumen, vessels, [stamps.disc(r, v) for r, v in pairs], over=True)
    scene.stamp(scene.layers.collagen, vessels, [stamps.ring(r + 3, 5, v) for r, v in pairs])
    points = scene.points(502, style.px(17))
    near = scene.around(salt, spacing, share, points)
    outer = np.float32(style.scale) * (50 + 22 * near.centre.u[1])
    free = ~near.present | (near.r > outer)
    crown = near.present & free & (near.r < outer + 16)
    keep = free & (~scene.sheet(points.y, points.x) | crown)
    keep &= crown | (points.u[3] < np.float32(style.density))
    scene.nuclei(points.where(keep), only(any_direction(points), keep), 6.5, 5.5)
    points = scene.points(503, style.px(10))
    near = scene.around(salt, spacing, share, points)
    outer = np.float32(style.scale) * (50 + 22 * near.centre.u[1])
    radial = near.present & (near.r < outer + 6)
    keep = (radial & (near.r > np.float32(style.scale) * 18)) | (~radial & ~scene.sheet(points.y, points.x))
    direction = choose(radial, (near.dy, near.dx), any_direction(points))
    ray = keep & radial
    scene.strokes(scene.layers.fibre, points.where(ray), only(direction, ray), 40, 2.5)
    web = keep & ~radial
    scene.strokes(scene.layers.fibre, points.where(web), only(direction, web), 20, 2.5)


TEXTURES: dict[str, Callable[[Scene], None]] = {
    "ependymoma": ependymoma,
    "meningioma": meningioma,
    "metastasis": metastasis,
    "schwannoma": schwannoma,
}
"""Class name → painter, in label order."""
