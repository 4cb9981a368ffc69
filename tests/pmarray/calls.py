"""A call of every public function of `numpy` and `numpy.linalg`, for comparing arrays with arrays.

A call is written with `m`, which makes an argument of an ndarray: the ndarray itself, or a
`PMArray` of its items. Each function has several: with its parameters one after another, and, where
it writes to an argument, with each argument that it writes to.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Make = Callable[[Any], Any]
Call = Callable[[Make], Any]

X = np.array([[3.0, 1, 2], [7, 5, 8], [4, 9, 6]])
"""Regular, without ties."""
N = np.array([[3.0, np.nan, 2], [np.nan, 5, 8], [4, 9, np.nan]])
I = np.array([[3, 1, 2], [7, 5, 8], [4, 9, 6]])  # noqa: E741  # as in mathematics
B = np.array([[True, False, True], [False, False, True], [True, True, False]])
C = X + 1j * X.T
S = X + X.T + 20 * np.eye(3)
"""Symmetric and positive definite."""
V = np.array([2.0, 5, 3, 3, 1])
K = np.array([2, 0, 1, 1, 4])
D = np.arange(48.0).reshape(2, 3, 8)
DAYS = np.array(["2026-11-23", "2026-11-28", "2026-12-01"], "datetime64[D]")
WHERE = B | B.T

_REDUCTIONS: dict[str, dict[str, Any]] = {
    name: {"of": of, "parameters": parameters}
    for names, of, parameters in [
        ("sum prod", X, "axis dtype out keepdims initial where"),
        ("nansum nanprod", N, "axis dtype out keepdims initial where"),
        ("max amax min amin", X, "axis out keepdims initial where"),
        ("nanmax nanmin", N, "axis out keepdims initial where"),
        ("any all", B, "axis out keepdims where"),
        ("mean", X, "axis dtype out keepdims where"),
        ("nanmean", N, "axis dtype out keepdims where"),
        ("var std", X, "axis dtype out ddof keepdims where mean correction"),
        ("nanvar nanstd", N, "axis dtype out ddof keepdims where mean correction"),
        ("ptp", X, "axis out keepdims"),
        ("median", X, "axis out keepdims"),
        ("nanmedian", N, "axis out keepdims"),
        ("argmax argmin", X, "axis out keepdims"),
        ("nanargmax nanargmin", np.where(np.isnan(N), 0, N), "axis out keepdims"),
        ("count_nonzero", B, "axis keepdims"),
        ("cumsum cumprod", X, "axis dtype out"),
        ("nancumsum nancumprod", N, "axis dtype out"),
        ("cumulative_sum cumulative_prod", V, "axis dtype out include_initial"),
        ("average", X, "axis keepdims weights returned"),
    ]
    for name in names.split()
}


def _values(name: str, parameter: str, make: Make) -> Any:
    function = getattr(np, name)
    of = _REDUCTIONS[name]["of"]
    if parameter == "axis":
        return 0
    if parameter == "dtype":
        return np.float32
    if parameter == "out":
        return make(np.zeros_like(function(of, axis=0)))
    if parameter == "initial":
        return 2.5
    if parameter == "where":
        return make(WHERE)
    if parameter == "mean":
        return make(np.full((1, 3), 4.5))
    if parameter == "weights":
        return make(of + 1)
    return 1 if parameter in ("ddof", "correction") else True


def _reductions() -> Iterator[tuple[str, Call]]:
    for name, one in _REDUCTIONS.items():
        parameters = one["parameters"].split()
        for chosen in itertools.chain(
            [()], itertools.combinations(parameters, 1), itertools.combinations(parameters, 2)
        ):
            if "out" in chosen and "axis" not in chosen:
                chosen = (*chosen, "axis")
            if ({"where", "initial"} & set(chosen) and "max" in name) or "min" in name:
                chosen = (*{*chosen, *({"initial"} if "where" in chosen else ())},)
            if {"ddof", "correction"} <= set(chosen) or {"out", "keepdims"} <= set(chosen):
                continue

            def call(make: Make, name: str = name, chosen: Any = chosen) -> Any:
                options = {key: _values(name, key, make) for key in chosen}
                if "mean" in options:
                    options["axis"] = 0
                return getattr(np, name)(make(_REDUCTIONS[name]["of"]), **options)

            yield name, call


def _z(shape: Any = 3, dtype: Any = float) -> Any:
    return np.zeros(shape, dtype)


CALLS: dict[str, list[Call]] = {
    "allclose": [
        lambda m: np.allclose(m(X), m(X + 1e-9)),
        lambda m: np.allclose(m(X), m(X + 1), atol=m(np.array([2.0, 0, 2]))),
        lambda m: np.allclose(m(X), m(X + 1), 0, m(np.full((3, 3), 2.0))),
        lambda m: np.allclose(m(N), m(N), equal_nan=True),
        lambda m: np.allclose(m(X), m(2 * X), m(np.array([[1.0], [0], [1]]))),
    ],
    "angle": [lambda m: np.angle(m(C)), lambda m: np.angle(m(C), True)],
    "append": [lambda m: np.append(m(X), m(V)), lambda m: np.append(m(X), m(X), 0)],
    "apply_along_axis": [lambda m: np.apply_along_axis(np.sort, 0, m(X))],
    "apply_over_axes": [lambda m: np.apply_over_axes(np.sum, m(D), [0, 2])],
    "argpartition": [lambda m: np.sort(np.argpartition(m(V), 2)[:2])],
    "argsort": [lambda m: np.argsort(m(X)), lambda m: np.argsort(m(X), 0, stable=True)],
    "argwhere": [lambda m: np.argwhere(m(B))],
    "around": [
        lambda m: np.around(m(X / 7), 2),
        lambda m: np.around(m(X / 7), 2, m(_z((3, 3)))),
        lambda m: np.around(m(X / 7), out=m(_z((3, 3)))),
    ],
    "array2string": [lambda m: np.array2string(m(X))],
    "array_equal": [lambda m: np.array_equal(m(N), m(N)), lambda m: np.array_equal(m(N), N, True)],
    "array_equiv": [lambda m: np.array_equiv(m(X), m(X[None])), lambda m: np.array_equiv(m(X), V)],
    "array_repr": [lambda m: np.array_repr(m(X))],
    "array_split": [lambda m: np.array_split(m(V), 3), lambda m: np.array_split(m(X), [1], 1)],
    "array_str": [lambda m: np.array_str(m(X))],
    "astype": [lambda m: np.astype(m(X), np.float32), lambda m: np.astype(m(X), float, copy=False)],
    "atleast_1d": [lambda m: np.atleast_1d(m(X), m(np.array(3.0)))],
    "atleast_2d": [lambda m: np.atleast_2d(m(V)), lambda m: np.atleast_2d(m(X), m(np.array(1)))],
    "atleast_3d": [lambda m: np.atleast_3d(m(V), m(X), m(D), m(np.array(3.0)))],
    "bincount": [lambda m: np.bincount(m(K)), lambda m: np.bincount(m(K), m(V), 9)],
    "block": [lambda m: np.block([[m(X), m(X)], [m(X), X]])],
    "broadcast_arrays": [lambda m: np.broadcast_arrays(m(X), m(X[:1]))],
    "broadcast_to": [lambda m: np.broadcast_to(m(X), (2, 3, 3))],
    "busday_count": [
        lambda m: np.busday_count(m(DAYS), m(DAYS + 9)),
        lambda m: np.busday_count(m(DAYS), DAYS + 9, out=m(_z(3, int))),
    ],
    "busday_offset": [
        lambda m: np.busday_offset(m(DAYS), 2, "forward"),
        lambda m: np.busday_offset(m(DAYS), m(K[:3]), "forward", out=m(DAYS.copy())),
    ],
    "choose": [
        lambda m: np.choose(m(K[:3] % 2), [m(V[:3]), m(V[2:])]),
        lambda m: np.choose(m(K[:3]), [m(V[:3]), m(V[2:])], m(_z()), "wrap"),
    ],
    "clip": [
        lambda m: np.clip(m(X), 2, 7),
        lambda m: np.clip(m(X), None, m(X[0])),
        lambda m: np.clip(m(X), m(X.T), None, m(_z((3, 3)))),
        lambda m: np.clip(m(I), min=2, max=m(I[1])),
        lambda m: np.clip(m(I.astype("u1")), -1, 300),
        lambda m: np.clip(m(X), 2, 7, out=m(_z((3, 3), "f4")), casting="same_kind"),
        lambda m: np.clip(m(X), 2, 7, m(_z((3, 3))), where=m(B)),
        lambda m: np.clip(m(X), 2, 7, dtype="f4", casting="unsafe"),
    ],
    "column_stack": [lambda m: np.column_stack([m(V), m(V)])],
    "common_type": [lambda m: np.common_type(m(X), m(C))],
    "compress": [
        lambda m: np.compress(m(B[0]), m(X)),
        lambda m: np.compress(B[0], m(X), 1, m(_z((3, 2)))),
    ],
    "concatenate": [
        lambda m: np.concatenate([m(X), m(X)]),
        lambda m: np.concatenate([m(X), m(I)], 1, m(_z((3, 6)))),
        lambda m: np.concatenate([m(X), X], dtype="f4"),
        lambda m: np.concatenate([m(X), X], axis=1, dtype="i4", casting="unsafe"),
    ],
    "convolve": [lambda m: np.convolve(m(V), m(V[:2]), "same")],
    "copy": [lambda m: np.copy(m(X)), lambda m: np.copy(m(X), "F")],
    "copyto": [
        lambda m: np.copyto(m(_z((3, 3))), m(X)),
        lambda m: np.copyto(m(_z((3, 3))), m(X[0]), where=m(B)),
        lambda m: np.copyto(m(_z((3, 3), "u1")), 5),
        lambda m: np.copyto(m(_z((3, 3), "i1")), m(I), "unsafe"),
        lambda m: np.copyto(m(_z((3, 3))), 3.5, where=m(B[0])),
    ],
    "corrcoef": [lambda m: np.corrcoef(m(X)), lambda m: np.corrcoef(m(X), m(S), rowvar=False)],
    "correlate": [lambda m: np.correlate(m(V), m(V[:2]), "full")],
    "cov": [lambda m: np.cov(m(X)), lambda m: np.cov(m(X), fweights=m(I[0]), aweights=m(X[1]))],
    "cross": [lambda m: np.cross(m(X), m(S)), lambda m: np.cross(m(X), m(S), axis=0)],
    "datetime_as_string": [lambda m: np.datetime_as_string(m(DAYS))],
    "delete": [lambda m: np.delete(m(X), 1, 0), lambda m: np.delete(m(V), m(K[:2]))],
    "diag": [lambda m: np.diag(m(X)), lambda m: np.diag(m(V), 1)],
    "diag_indices_from": [lambda m: np.diag_indices_from(m(X))],
    "diagflat": [lambda m: np.diagflat(m(X), 1)],
    "diagonal": [lambda m: np.diagonal(m(X)), lambda m: np.diagonal(m(D), 1, 1, 2)],
    "diff": [
        lambda m: np.diff(m(X), 2),
        lambda m: np.diff(m(X), axis=0, prepend=m(X[:1]), append=1),
    ],
    "digitize": [
        lambda m: np.digitize(m(X), m(np.arange(5.0))),
        lambda m: np.digitize(m(V), V[1::-1], True),
    ],
    "dot": [
        lambda m: np.dot(m(X), m(S)),
        lambda m: np.dot(m(D), m(_z(8) + 2)),
        lambda m: np.dot(m(X), m(S), m(_z((3, 3)))),
        lambda m: np.dot(m(V), m(V)),
        lambda m: np.dot(m(X), 3),
    ],
    "dsplit": [lambda m: np.dsplit(m(D), 4)],
    "dstack": [lambda m: np.dstack([m(X), m(X)])],
    "ediff1d": [lambda m: np.ediff1d(m(X), 1, m(V))],
    "einsum": [
        lambda m: np.einsum("ij,jk->ik", m(X), m(S)),
        lambda m: np.einsum("ij->ji", m(X), out=m(_z((3, 3)))),
        lambda m: np.einsum("ii->i", m(X)),
        lambda m: np.einsum("ij,jk,kl", m(X), m(S), X, optimize=True),
        lambda m: np.einsum("ij,ij->i", m(X), m(S), dtype="f4", casting="unsafe"),
        lambda m: np.einsum("ij,jk,kl->il", m(X), m(S), X, out=m(_z((3, 3)))),
    ],
    "einsum_path": [lambda m: np.einsum_path("ij,jk", m(X), m(S))[0]],
    "empty_like": [
        lambda m: np.empty_like(m(X)).shape,
        lambda m: np.empty_like(m(X), "i1", "F", False, (2, 3)).dtype,
    ],
    "expand_dims": [lambda m: np.expand_dims(m(X), 1), lambda m: np.expand_dims(m(X), (0, -1))],
    "extract": [lambda m: np.extract(m(B), m(X))],
    "fill_diagonal": [
        lambda m: np.fill_diagonal(m(X), 9),
        lambda m: np.fill_diagonal(m(X), m(V[:3])),
        lambda m: np.fill_diagonal(m(_z((7, 3))), 1, True),
        lambda m: np.fill_diagonal(m(_z((3, 3, 3))), [4, 5, 6]),
    ],
    "fix": [lambda m: np.fix(m(-X / 7)), lambda m: np.fix(m(X / 7), m(_z((3, 3))))],
    "flatnonzero": [lambda m: np.flatnonzero(m(B))],
    "flip": [lambda m: np.flip(m(X)), lambda m: np.flip(m(D), (0, 2)), lambda m: np.flip(m(D), -1)],
    "fliplr": [lambda m: np.fliplr(m(X))],
    "flipud": [lambda m: np.flipud(m(X))],
    "full_like": [
        lambda m: np.full_like(m(X), 3),
        lambda m: np.full_like(m(X), m(V[:3]), "f4", "F", False, (2, 3)),
    ],
    "geomspace": [lambda m: np.geomspace(m(V), m(V + 1), 4)],
    "gradient": [lambda m: np.gradient(m(X)), lambda m: np.gradient(m(V), m(np.arange(5.0)))],
    "histogram": [
        lambda m: np.histogram(m(X)),
        lambda m: np.histogram(m(X), m(np.arange(5.0)), None, True, m(X)),
        lambda m: np.histogram(m(X), 4, (0, 5), weights=m(S)),
        lambda m: np.histogram(m(X), "auto"),
    ],
    "histogram2d": [lambda m: np.histogram2d(m(V), m(V + 1), 3)],
    "histogram_bin_edges": [
        lambda m: np.histogram_bin_edges(m(X), 4),
        lambda m: np.histogram_bin_edges(m(X), "sturges", (0, 9)),
        lambda m: np.histogram_bin_edges(m(X), 4, weights=m(X)),
    ],
    "histogramdd": [lambda m: np.histogramdd(m(X), 2)],
    "hsplit": [lambda m: np.hsplit(m(X), 3), lambda m: np.hsplit(m(V), [1, 3])],
    "hstack": [lambda m: np.hstack([m(V), m(V)])],
    "i0": [lambda m: np.i0(m(X))],
    "imag": [lambda m: np.imag(m(C)), lambda m: np.imag(m(X))],
    "inner": [lambda m: np.inner(m(X), m(S)), lambda m: np.inner(m(X), 2)],
    "insert": [lambda m: np.insert(m(X), 1, m(V[:3]), 0)],
    "interp": [lambda m: np.interp(m(X), m(np.arange(5.0)), m(V))],
    "intersect1d": [lambda m: np.intersect1d(m(X), m(V), return_indices=True)],
    "iscomplex": [lambda m: np.iscomplex(m(C))],
    "iscomplexobj": [lambda m: np.iscomplexobj(m(C)), lambda m: np.iscomplexobj(m(X))],
    "is_busday": [
        lambda m: np.is_busday(m(DAYS)),
        lambda m: np.is_busday(m(DAYS), out=m(_z(3, bool))),
    ],
    "isclose": [lambda m: np.isclose(m(N), m(N), equal_nan=True)],
    "isin": [lambda m: np.isin(m(X), m(V)), lambda m: np.isin(m(I), m(K), invert=True)],
    "isneginf": [
        lambda m: np.isneginf(m(np.array([-np.inf, 2.0]))),
        lambda m: np.isneginf(m(np.array([-np.inf, 2.0])), m(_z(2, bool))),
    ],
    "isposinf": [lambda m: np.isposinf(m(np.array([np.inf, 2.0])), m(_z(2, bool)))],
    "isreal": [lambda m: np.isreal(m(C))],
    "isrealobj": [lambda m: np.isrealobj(m(C))],
    "ix_": [lambda m: np.ix_(m(K), m(K))],
    "kron": [lambda m: np.kron(m(X), m(S))],
    "lexsort": [lambda m: np.lexsort((m(V), m(K)))],
    "linspace": [lambda m: np.linspace(m(V), m(V + 1), 4)],
    "logspace": [lambda m: np.logspace(m(V), m(V + 1), 4)],
    "matrix_transpose": [lambda m: np.matrix_transpose(m(D))],
    "may_share_memory": [lambda m: np.may_share_memory(m(X), m(X)), lambda m: _shared(m)],
    "meshgrid": [lambda m: np.meshgrid(m(V), m(K))],
    "min_scalar_type": [lambda m: np.min_scalar_type(m(X))],
    "moveaxis": [lambda m: np.moveaxis(m(D), 0, -1), lambda m: np.moveaxis(m(D), (0, 1), (1, 2))],
    "nan_to_num": [
        lambda m: np.nan_to_num(m(N)),
        lambda m: np.nan_to_num(m(N), False, 7.0),
        lambda m: np.nan_to_num(m(N), copy=False),
    ],
    "nanpercentile": [
        lambda m: np.nanpercentile(m(N), 30, 0),
        lambda m: np.nanpercentile(m(N), 30, 0, m(_z())),
        lambda m: np.nanpercentile(m(N), m(np.array([30.0, 40])), overwrite_input=False),
    ],
    "nanquantile": [lambda m: np.nanquantile(m(N), 0.3, 0, m(_z()))],
    "ndim": [lambda m: np.ndim(m(X))],
    "nonzero": [lambda m: np.nonzero(m(B))],
    "ones_like": [
        lambda m: np.ones_like(m(X)),
        lambda m: np.ones_like(m(X), "f4", "F", False, (2, 3)),
    ],
    "outer": [lambda m: np.outer(m(X), m(V)), lambda m: np.outer(m(V), m(V), m(_z((5, 5))))],
    "packbits": [lambda m: np.packbits(m(B), 0)],
    "pad": [lambda m: np.pad(m(X), 1, "edge")],
    "partition": [lambda m: np.sort(np.partition(m(V), 2)[:2])],
    "percentile": [
        lambda m: np.percentile(m(X), 30),
        lambda m: np.percentile(m(X), 30, 0, m(_z())),
        lambda m: np.percentile(m(X), [30, 40], 0, weights=m(X), method="inverted_cdf"),
    ],
    "permute_dims": [lambda m: np.permute_dims(m(D), (2, 0, 1))],
    "piecewise": [lambda m: np.piecewise(m(V), [m(V > 2)], [lambda x: x * 2, 1])],
    "place": [
        lambda m: np.place(m(X), m(B), [1, 2]),
        lambda m: np.place(m(X), B, m(V)),
    ],
    "poly": [lambda m: np.poly(m(V))],
    "polyadd": [lambda m: np.polyadd(m(V), m(V[:3]))],
    "polyder": [lambda m: np.polyder(m(V))],
    "polydiv": [lambda m: np.polydiv(m(V), m(V[:2]))],
    "polyfit": [lambda m: np.polyfit(m(np.arange(5.0)), m(V), 2)],
    "polyint": [lambda m: np.polyint(m(V))],
    "polymul": [lambda m: np.polymul(m(V), m(V))],
    "polysub": [lambda m: np.polysub(m(V), m(V[:3]))],
    "polyval": [lambda m: np.polyval(m(V), m(X))],
    "put": [
        lambda m: np.put(m(X), [0, 5], [9, 8]),
        lambda m: np.put(m(X), m(K), m(V)),
        lambda m: np.put(m(X), [1, 22], 9, "wrap"),
        lambda m: np.put(m(X), [1, 22], 9, mode="clip"),
        lambda m: np.put(X.copy(), m(K), m(V)),
    ],
    "put_along_axis": [
        lambda m: np.put_along_axis(m(X), m(np.array([[1], [0], [2]])), 9, 1),
        lambda m: np.put_along_axis(m(X), np.array([4, 1]), m(V[:2]), None),
    ],
    "putmask": [
        lambda m: np.putmask(m(X), m(B), m(V)),
        lambda m: np.putmask(m(X), B, 3),
        lambda m: np.putmask(X.copy(), m(B), m(V)),
    ],
    "quantile": [
        lambda m: np.quantile(m(X), 0.3),
        lambda m: np.quantile(m(X), m(np.array([0.3, 0.5])), 0, m(_z((2, 3)))),
        lambda m: np.quantile(m(X), 0.3, keepdims=True, method="lower"),
    ],
    "ravel": [lambda m: np.ravel(m(X)), lambda m: np.ravel(m(X), "F")],
    "ravel_multi_index": [lambda m: np.ravel_multi_index((m(K), m(K)), (5, 5))],
    "real": [lambda m: np.real(m(C)), lambda m: np.real(m(X))],
    "real_if_close": [lambda m: np.real_if_close(m(X + 0j))],
    "repeat": [lambda m: np.repeat(m(V), m(K))],
    "reshape": [lambda m: np.reshape(m(X), 9), lambda m: np.reshape(m(D), (6, 8), "F")],
    "resize": [lambda m: np.resize(m(X), (2, 5))],
    "result_type": [lambda m: np.result_type(m(X), m(C), 3)],
    "roll": [lambda m: np.roll(m(X), 1, 0)],
    "rollaxis": [lambda m: np.rollaxis(m(D), 2), lambda m: np.rollaxis(m(D), 0, 3)],
    "roots": [lambda m: np.roots(m(V))],
    "rot90": [lambda m, k=k: np.rot90(m(D), k, (0, 2)) for k in range(-1, 4)],  # type: ignore[misc]
    "round": [lambda m: np.round(m(X / 7), 2), lambda m: np.round(m(X / 7), 2, m(_z((3, 3))))],
    "searchsorted": [lambda m: np.searchsorted(m(np.arange(9.0)), m(X), "right")],
    "select": [lambda m: np.select([m(B), m(B.T)], [m(X), m(S)], 3)],
    "setdiff1d": [lambda m: np.setdiff1d(m(X), m(V))],
    "setxor1d": [lambda m: np.setxor1d(m(X), m(V))],
    "shape": [lambda m: np.shape(m(D))],
    "shares_memory": [lambda m: np.shares_memory(m(X), m(X)), lambda m: _shared(m)],
    "sinc": [lambda m: np.sinc(m(X))],
    "size": [lambda m: np.size(m(D)), lambda m: np.size(m(D), 1)],
    "sort": [lambda m: np.sort(m(X)), lambda m: np.sort(m(X), None), lambda m: np.sort(m(X), 0)],
    "sort_complex": [lambda m: np.sort_complex(m(C))],
    "split": [lambda m: np.split(m(X), 3), lambda m: np.split(m(X), m(np.array([1, 2])), 1)],
    "squeeze": [lambda m: np.squeeze(m(X[None])), lambda m: np.squeeze(m(D[:1, :1]), 1)],
    "stack": [
        lambda m: np.stack([m(X), m(X)], 1),
        lambda m: np.stack([m(X), m(X)], 1, m(_z((3, 2, 3)))),
        lambda m: np.stack([m(X), X], dtype="f4", casting="unsafe"),
    ],
    "swapaxes": [lambda m: np.swapaxes(m(D), 0, 2)],
    "take": [
        lambda m: np.take(m(X), m(K)),
        lambda m: np.take(m(X), [2, 0], 1, m(_z((3, 2)))),
        lambda m: np.take(m(X), [5, -7], 1, mode="wrap"),
    ],
    "take_along_axis": [lambda m: np.take_along_axis(m(X), m(np.argsort(X)), -1)],
    "tensordot": [
        lambda m: np.tensordot(m(X), m(S)),
        lambda m: np.tensordot(m(D), m(X), (1, 0)),
        lambda m: np.tensordot(m(X), m(V), 0),
    ],
    "tile": [lambda m: np.tile(m(X), (2, 1))],
    "trace": [lambda m: np.trace(m(X)), lambda m: np.trace(m(D), 1, 1, 2, float, m(_z(2)))],
    "transpose": [lambda m: np.transpose(m(D)), lambda m: np.transpose(m(D), (1, 0, 2))],
    "trapezoid": [lambda m: np.trapezoid(m(X), m(np.array([0.0, 1, 3])))],
    "tril": [lambda m: np.tril(m(X), 1)],
    "tril_indices_from": [lambda m: np.tril_indices_from(m(X))],
    "trim_zeros": [lambda m: np.trim_zeros(m(np.array([0.0, 1, 0])))],
    "triu": [lambda m: np.triu(m(X), -1)],
    "triu_indices_from": [lambda m: np.triu_indices_from(m(X))],
    "union1d": [lambda m: np.union1d(m(X), m(V))],
    "unique": [lambda m: np.unique(m(V), return_index=True, return_counts=True)],
    "unique_all": [lambda m: tuple(np.unique_all(m(V)))],
    "unique_counts": [lambda m: tuple(np.unique_counts(m(V)))],
    "unique_inverse": [lambda m: tuple(np.unique_inverse(m(V)))],
    "unique_values": [lambda m: np.unique_values(m(V))],
    "unpackbits": [lambda m: np.unpackbits(m(I.astype("u1")), 1)],
    "unravel_index": [lambda m: np.unravel_index(m(K), (2, 3))],
    "unstack": [lambda m: np.unstack(m(D)), lambda m: np.unstack(m(D), axis=-1)],
    "unwrap": [lambda m: np.unwrap(m(X * 3))],
    "vander": [lambda m: np.vander(m(V), 3)],
    "vdot": [lambda m: np.vdot(m(C), m(C)), lambda m: np.vdot(m(V), m(K))],
    "vsplit": [lambda m: np.vsplit(m(X), 3)],
    "vstack": [lambda m: np.vstack([m(V), m(V)])],
    "where": [
        lambda m: np.where(m(B)),
        lambda m: np.where(m(B), m(X), 3),
        lambda m: np.where(B, m(X[0]), m(X.T)),
        lambda m: np.where(m(B), X, I),
    ],
    "zeros_like": [
        lambda m: np.zeros_like(m(X)),
        lambda m: np.zeros_like(m(X), "f4", "F", False, (2, 3)),
    ],
    "can_cast": [lambda m: np.can_cast(m(I).dtype, "f4")],
    # -- numpy.linalg ---------------------------------------------------------------------------
    "linalg.cholesky": [
        lambda m: np.linalg.cholesky(m(S)),
        lambda m: np.linalg.cholesky(m(S), upper=True),
    ],
    "linalg.cond": [lambda m: np.linalg.cond(m(S)), lambda m: np.linalg.cond(m(S), 1)],
    "linalg.cross": [lambda m: np.linalg.cross(m(X), m(S))],
    "linalg.det": [lambda m: np.linalg.det(m(S))],
    "linalg.diagonal": [lambda m: np.linalg.diagonal(m(X), offset=1)],
    "linalg.eig": [lambda m: np.linalg.eig(m(S))[0]],
    "linalg.eigh": [lambda m: np.linalg.eigh(m(S), "U")[0]],
    "linalg.eigvals": [lambda m: np.linalg.eigvals(m(S))],
    "linalg.eigvalsh": [lambda m: np.linalg.eigvalsh(m(S))],
    "linalg.inv": [lambda m: np.linalg.inv(m(S))],
    "linalg.lstsq": [lambda m: np.linalg.lstsq(m(S), m(V[:3]))[0]],
    "linalg.matmul": [lambda m: np.linalg.matmul(m(S), m(X))],
    "linalg.matrix_norm": [lambda m: np.linalg.matrix_norm(m(X), keepdims=True, ord=1)],
    "linalg.matrix_power": [lambda m: np.linalg.matrix_power(m(X), 3)],
    "linalg.matrix_rank": [lambda m: np.linalg.matrix_rank(m(X))],
    "linalg.matrix_transpose": [lambda m: np.linalg.matrix_transpose(m(D))],
    "linalg.multi_dot": [
        lambda m: np.linalg.multi_dot([m(X), m(S), m(X)]),
        lambda m: np.linalg.multi_dot([m(X), m(S), m(X)], out=m(_z((3, 3)))),
    ],
    "linalg.norm": [
        lambda m, t=t, o=o, x=x, k=k: np.linalg.norm(m(X.astype(t)), o, x, k)  # type: ignore[misc]
        for t in ("f2", "f4", "f8", "c8", "c16", "i4")
        for o in (None, 1, np.inf)
        for x in (None, 0, (0, 1))
        for k in (False, True)
    ],
    "linalg.outer": [lambda m: np.linalg.outer(m(V), m(K))],
    "linalg.pinv": [lambda m: np.linalg.pinv(m(S))],
    "linalg.qr": [lambda m: np.abs(np.linalg.qr(m(S), "r"))],
    "linalg.slogdet": [lambda m: tuple(np.linalg.slogdet(m(S)))],
    "linalg.solve": [lambda m: np.linalg.solve(m(S), m(X))],
    "linalg.svd": [lambda m: np.linalg.svd(m(X), compute_uv=False)],
    "linalg.svdvals": [lambda m: np.linalg.svdvals(m(X))],
    "linalg.tensordot": [lambda m: np.linalg.tensordot(m(X), m(S), axes=1)],
    "linalg.tensorinv": [lambda m: np.linalg.tensorinv(m(S), 1)],
    "linalg.tensorsolve": [lambda m: np.linalg.tensorsolve(m(S), m(V[:3]))],
    "linalg.trace": [lambda m: np.linalg.trace(m(X), offset=1, dtype=np.float32)],
    "linalg.vecdot": [lambda m: np.linalg.vecdot(m(X), m(S))],
    "linalg.vector_norm": [lambda m: np.linalg.vector_norm(m(X), axis=0, keepdims=True, ord=3)],
}  # fmt: skip


def _shared(make: Make) -> bool:
    one = make(X)
    return bool(np.shares_memory(one, one) and np.may_share_memory(one, one))


def _add_reductions() -> None:
    for name, call in _reductions():
        CALLS.setdefault(name, []).append(call)


_add_reductions()

# -- ufuncs, with each of their parameters --------------------------------------------------------

UFUNCS = sorted(
    name
    for name in dir(np)
    if isinstance(getattr(np, name), np.ufunc) and getattr(np, name).__name__ == name
)


for _ord in (2, -2, "nuc", "fro"):
    CALLS["linalg.norm"].append(lambda m, o=_ord: np.linalg.norm(m(X), o))  # type: ignore[misc]


def _reduces_right(ufunc: np.ufunc) -> bool:
    """Whether NumPy does, in both orders.

    With AVX-512, `arctan2.reduce` and `power.reduce` of NumPy 2.4 forget all but the first and the
    last item where they go along the memory, so that the result depends on the order.
    """
    if "dd->d" not in ufunc.types:
        return True
    with np.errstate(all="ignore"):
        expected = functools.reduce(ufunc, X / 10)
        found = [ufunc.reduce(x) for x in (X / 10, np.asfortranarray(X / 10))]
    return all(np.allclose(x, expected, equal_nan=True) for x in found)


def _ufunc_calls(name: str) -> Iterator[Call]:
    ufunc = getattr(np, name)
    for one in (X / 10, I, B, DAYS):
        try:
            with np.errstate(all="ignore"):
                found = ufunc(*[one] * ufunc.nin)
        except TypeError:
            continue
        results = found if isinstance(found, tuple) else (found,)
        outs = tuple(np.zeros_like(x) for x in results)
        shape = np.shape(one)

        def plain(make: Make, one: Any = one) -> Any:
            return ufunc(*(make(one) for _ in range(ufunc.nin)))

        def into(make: Make, one: Any = one, outs: Any = outs) -> Any:
            return ufunc(*(make(one) for _ in range(ufunc.nin)), *(make(x) for x in outs))

        def masked(make: Make, one: Any = one, outs: Any = outs, shape: Any = shape) -> Any:
            return ufunc(
                *(make(one) for _ in range(ufunc.nin)),
                out=tuple(make(x) for x in outs),
                where=make(np.resize(B, shape)),
            )

        yield plain
        yield into
        if ufunc.signature is None:
            yield masked
        if ufunc.nin == 2 and ufunc.nout == 1 and ufunc.signature is None and len(shape) == 2:
            methods = ("reduce", "accumulate") if _reduces_right(ufunc) else ("accumulate",)
            for method in methods:
                for options in ({}, {"axis": 1}):
                    yield lambda m, by=method, o=options, one=one: getattr(ufunc, by)(m(one), **o)  # type: ignore[misc]
            yield lambda m, one=one: ufunc.outer(m(one[0]), m(one[1]))  # type: ignore[misc]
            yield lambda m, one=one: ufunc.at(m(one), [0, 0, 2], m(one[:1]))  # type: ignore[misc]
            yield lambda m, one=one: ufunc.reduceat(m(one), [0, 2])  # type: ignore[misc]


for _name in UFUNCS:
    CALLS[_name] = list(_ufunc_calls(_name))
