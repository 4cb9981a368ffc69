"""The grammar of URLs and of array names."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pmarray
from pmarray._url import URL, check_name
from pmarray.errors import StorageError, URLError

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
plain_paths = st.text(string.ascii_letters + string.digits + "/._- @~+äß", min_size=1, max_size=30)
paths = plain_paths | st.text("/a2356F#?%&=:", min_size=1, max_size=20)
options = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=5),
    st.text(string.ascii_letters + "#&=%+ ?", max_size=5),
    max_size=3,
)


@given(st.sampled_from(["memmap", "dram", "zarr"]), paths, st.none() | names, options)
def test_what_is_written_is_what_is_read(
    scheme: str, path: str, name: str | None, query: dict[str, str]
) -> None:
    assume(name != "zarr.json")
    url = URL(scheme, path, name, query)
    assert URL.parse(str(url)) == url


NAMED = (".zarr", ".zarr.zip", ".h5", ".hdf5", ".he5", ".nc", ".npz", ".mat", ".safetensors")


@given(plain_paths)
def test_a_bare_path_is_a_memmap(path: str) -> None:
    assume(not any(part.endswith(NAMED) for part in path.split("/")))
    assert URL.parse(path) == URL("memmap", path)


@pytest.mark.parametrize(
    ("text", "url"),
    [("./x.zarr", URL("zarr", "./x.zarr")), ("x.zarr/inner#w", URL("zarr", "x.zarr/inner", "w")),
     ("x.zarr.zip", URL("zarr", "x.zarr.zip")), (Path("a/x.zarr"), URL("zarr", "a/x.zarr")),
     ("memmap:x.zarr", URL("memmap", "x.zarr")), ("x.npy", URL("memmap", "x.npy")),
     ("s3://bucket/x.zarr#w", URL("zarr", "s3://bucket/x.zarr", "w")),
     ("file:///data/a%20b", URL("memmap", "/data/a b")),
     ("file:/data/x.zarr", URL("zarr", "/data/x.zarr")),
     ("file://localhost/data/run#w", URL("memmap", "/data/run", "w")),
     ("memmap:x.h5", URL("memmap", "x.h5"))],
)  # fmt: skip
def test_a_place_without_a_scheme_of_ours_is_recognised(text: str | Path, url: URL) -> None:
    assert URL.parse(text) == url


@pytest.mark.parametrize(
    ("text", "says"),
    [("s3://bucket/x", "write 'zarr:s3://bucket/x', or 'icechunk:s3://bucket/x'"),
     ("https://host/x", "zarr:https://host/x"), ("x.h5", "h5py"), (Path("a/x.nc"), "xarray"),
     ("file:///a/x.npz#w", "numpy.load"), ("file:relative", "absolute"),
     ("file://elsewhere/x", "absolute")],
)  # fmt: skip
def test_what_is_none_of_ours_is_named(text: str | Path, says: str) -> None:
    with pytest.raises(URLError, match=says):
        URL.parse(text)


@given(st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text))
def test_a_path_object_is_a_path_whatever_it_holds(text: str) -> None:
    assume(not any(part.endswith(NAMED) for part in Path(text).parts))
    assert URL.parse(Path(text)) == URL("memmap", str(Path(text)))


def test_a_percent_sign_stands_for_itself_but_before_the_code_of_a_reserved_character() -> None:
    assert URL.parse("memmap:/100%/a%20b%2").path == "/100%/a%20b%2"
    assert URL.parse("memmap:/a%23b%3fc%2523#x") == URL("memmap", "/a#b?c%23", "x")


def test_schemes_are_told_from_paths() -> None:
    assert URL.parse("DRAM:").scheme == "dram"
    assert URL.parse("./a:b/c").scheme == "memmap"
    assert URL.parse("dir/a:b").scheme == "memmap"
    assert URL.parse("C:/x").scheme == "memmap"  # one letter is a drive, not a scheme
    assert URL.parse("zarr:s3://bucket/x#w") == URL("zarr", "s3://bucket/x", "w")


@pytest.mark.parametrize("text", ["", None, 3, b"memmap:/x", "memmap:/x#../up", "memmap:/x#a/b"])
def test_refuses_what_is_no_url(text: object) -> None:
    with pytest.raises(URLError):
        URL.parse(text)  # type: ignore[arg-type]


@given(st.text(max_size=12))
def test_a_name_is_safe_as_a_file_name_or_refused(name: str) -> None:
    try:
        check_name(name)
    except URLError:
        return
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith((".", "-"))
    assert name != "zarr.json"


@pytest.mark.parametrize("name", ["zarr.json", ".", "..", "a" * 129])
def test_names_that_would_collide_are_refused(name: str) -> None:
    with pytest.raises(URLError, match="cannot be called"):
        check_name(name)


@pytest.mark.parametrize("text", ["memmap:/a\0b", "zarr:x\0", "a\0#b"])
def test_a_nul_is_no_part_of_a_path(text: str) -> None:
    with pytest.raises(URLError, match="NUL"):
        URL.parse(text)


@pytest.mark.parametrize("scheme", ["memmap", "zarr", "icechunk", "dram"])
def test_a_working_directory_that_is_gone_matters_to_relative_paths_alone(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme == "icechunk":
        pytest.importorskip("icechunk", reason="icechunk: needs the package icechunk")
    gone = tmp_path / "gone"
    gone.mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    def put(place: str) -> str:
        return f"dram:?spill={place}" if scheme == "dram" else f"{scheme}:{place}"

    with pmarray.open_group(put(f"{tmp_path}/there")) as group:
        group["x"] = np.ones(3)
        assert (group["x"][...] == 1).all()
    for place in ("there", "./there", "../there"):
        with pytest.raises(StorageError, match="the working directory is gone"):
            pmarray.open_group(put(place))
