"""``python -m pmarray``, in a process of its own where terminals, signals and locks matter."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import pmarray
from pmarray._upkeep import doctor, reading
from pmarray._upkeep.doctor import examine
from pmarray.errors import URLError
from tests import machine
from tests.persistent import pretend_dax, pretend_devices


def run(
    *args: object, program: str = "pmarray", answer: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Call the command line here: an exception that it does not turn into a line is raised."""
    app = importlib.import_module(f"{program}.cli").app
    words = [str(arg) for arg in args]
    done = CliRunner(env={"COLUMNS": "120", **env}).invoke(
        app, words, input=answer, catch_exceptions=False, prog_name=program
    )
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    with pmarray.open_group(tmp_path / "g") as made:
        x = made.create("x", (200, 30), "float32", layout="col", fill_value=2)
        x[0] = np.arange(30)
        made.create("records", (2,), [("a", "<i4"), ("b", "?")])
        made.attrs["note"] = "[bold]kept as it is"
    return tmp_path / "g"


def test_info_for_people(group: Path) -> None:
    done = run("info", group)
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        f"memmap:{group}",
        "x",
        "(200, 30)",
        "float32",
        "col",
        "('a', '<i4')",
        "23.4 KiB",
        "[bold]kept",
    ):
        assert word in done.stdout
    assert "records" not in run("info", f"{group}#x").stdout


def test_info_for_programs(group: Path) -> None:
    described = json.loads(run("info", group, "--json").stdout)
    assert described["attrs"] == {"note": "[bold]kept as it is"}
    assert described["arrays"]["x"] == {
        "shape": [200, 30], "dtype": "<f4", "layout": "col", "chunks": [200, 5120],
        "nbytes": 24_000, "stored_nbytes": 24_000, "fill_value": 2.0,
    }  # fmt: skip
    assert described["arrays"]["records"]["dtype"] == [["a", "<i4"], ["b", "|b1"]]
    assert list(json.loads(run("info", f"{group}#x", "--json").stdout)["arrays"]) == ["x"]


def test_ls_and_head(group: Path) -> None:
    assert run("ls", group).stdout == "records\nx\n"
    lines = run("head", f"{group}#x", "-n", "3").stdout.splitlines()
    assert lines[0].startswith("<PMArray")
    assert lines[1] == "array([[0., 1., 2.],"
    assert lines[-1] == "the first (3, 3) of (200, 30)"
    assert "first" not in run("head", f"{group}#records").stdout


@pytest.mark.parametrize("shape", [(), (0, 3), (40, 40, 40, 40)])
def test_head_of_any_shape_is_short(shape: Any, tmp_path: Path) -> None:
    pmarray.open(tmp_path, shape, "int8").close()
    done = run("head", tmp_path, "-n", "1000000")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) < 100_000


def test_copy_of_one_array(group: Path, tmp_path: Path) -> None:
    done = run("copy", f"{group}#x", f"{tmp_path}/new#y", "--layout", "row", "--cache", "1 MiB")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with pmarray.open(f"{tmp_path}/new#y", mode="r") as y:
        assert (y.layout, y[0, 29], y[1, 0], y.fill_value) == ("row", 29, 2, 2)


def test_copy_of_a_group_and_over_it(group: Path, tmp_path: Path) -> None:
    assert run("copy", group, tmp_path / "new").returncode == 0
    with pmarray.open_group(tmp_path / "new") as new:
        assert list(new) == ["records", "x"]
        assert dict(new.attrs) == {"note": "[bold]kept as it is"}
        new.create("more", (3,))
    done = run("copy", group, tmp_path / "new")
    assert done.returncode == 1
    assert "--overwrite replaces it" in done.stderr
    assert run("copy", group, tmp_path / "new", "--overwrite").returncode == 0
    assert run("ls", tmp_path / "new").stdout == "records\nx\n"


def test_verify_and_recover(group: Path) -> None:
    assert run("verify", group).returncode == 0
    assert run("recover", group).stdout.startswith(f"{group}: as of transaction")
    os.truncate(next((group / "data").glob("000001*")), 5000)
    done = run("verify", group)
    assert done.returncode == 3
    assert "1 damaged" in done.stdout


def test_recover_by_force(group: Path) -> None:
    with pmarray.open_group(group) as opened, opened.transaction():
        opened["x"][...] = 3
    os.truncate(group / "journal", 8192)
    done = run("recover", group)
    assert done.returncode == 1
    assert "recover --force" in done.stderr
    assert run("verify", group).returncode == 3
    done = run("recover", group, "--force")
    assert done.returncode == 3
    assert "lost: the journal was cut" in done.stdout
    assert run("verify", group, "--data").returncode == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [(["info", "{0}/none"], "there is no group"), (["ls", "floppy:x"], "no backend for"),
     (["ls", "{0}#x"], "names an array"), (["head", "{0}"], "it holds records, x"),
     (["info", "{0}#y"], "it holds records, x"),
     (["recover", "{0}/none"], ""), (["verify", "{0}/none"], "there is no group"),
     (["copy", "{0}/none", "{0}/new"], "there is no group"),
     (["copy", "{0}#y", "{0}/new"], "no array 'y'"), (["copy", "{0}", "{0}"], "itself"),
     (["copy", "{0}", "dram:"], "would be gone"), (["copy", "{0}#x", "{0}#x"], "itself")],
)  # fmt: skip
def test_an_error_is_one_line_and_status_1(command: list[str], says: str, group: Path) -> None:
    done = run(*(word.format(group) for word in command))
    assert done.returncode == 1
    assert done.stderr.startswith("pmarray: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (group / "new").exists()


def test_an_option_that_is_none_of_the_choices(group: Path) -> None:
    done = run("copy", str(group), f"{group}/new", "--layout", "up")
    assert done.returncode == 2
    assert "'up' is not one of" in done.stderr
    assert not (group / "new").exists()


@pytest.mark.parametrize("option", [["--cache", "lots"], ["--layout"], ["--unknown"]])
def test_a_wrong_call_is_status_2(option: list[str], group: Path, tmp_path: Path) -> None:
    done = run("copy", group, tmp_path / "new", *option)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_bar_is_drawn_on_a_terminal_only(group: Path, tmp_path: Path) -> None:
    import pty

    try:
        main, side = pty.openpty()
    except OSError as error:  # a container without /dev/pts
        pytest.skip(f"no terminal can be had here: {error}")
    with subprocess.Popen(
        [sys.executable, "-m", "pmarray", "copy", group, tmp_path / "new"],
        stderr=side,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        process.wait(timeout=60)
    os.close(side)
    seen = os.read(main, 100_000).decode()
    os.close(main)
    assert process.returncode == 0
    assert "24.0/24.0" in seen.replace(" ", "") or "23.4/23.4" in seen.replace(" ", "")


@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["ls"], ["verify"], ["--help"]])
@pytest.mark.parametrize("output", [">&-", "> /dev/full", "| true"])
def test_an_output_that_takes_nothing_is_told_in_a_line_at_most(
    command: list[str], output: str, tmp_path: Path
) -> None:
    if "full" in output and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with pmarray.open_group(tmp_path / "g") as group:
        group["x"] = np.ones(3)
    place = [] if command == ["--help"] else [str(tmp_path / "g")]
    words = " ".join([sys.executable, "-m", "pmarray", *command, *place])
    # With a buffer, as for most users, all of it fails at the end.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", f"{words} {output}"], capture_output=True, text=True, check=False, env=own
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "full" in output:
        assert done.stderr.count("\n") == 1
        assert "cannot be written" in done.stderr or "No space left" in done.stderr
        assert done.returncode == 1
    else:
        assert done.stderr == ""
        assert done.returncode == 0  # of `true`, where there is a pipe


def started(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Call the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pmarray", *map(str, args)],
        capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_what_was_done_is_said_where_the_output_takes_nothing(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        group["x"] = np.ones(3)
    words = f"{sys.executable} -m pmarray recover {tmp_path}/g"
    done = subprocess.run(["sh", "-c", f"{words} > /dev/full"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "0 before-images put back\n" in done.stderr
    assert "pmarray: the output cannot be written" in done.stderr


def test_an_error_of_the_command_line_itself_is_not_one_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    done = started(
        *("--install-completion", "bash"),
        HOME=str(tmp_path / "home"),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",  # nobody's shell may have started this
    )
    assert done.returncode == 1
    assert "File exists" in done.stderr
    assert "output" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with pmarray.open_group(f"memmap:{place}") as group:
        group["x"] = np.ones(3)
        group.attrs["\u00e4"] = "\u03b1"
    for encoding in ("ascii", "utf-8"):
        for command in ("info", "ls", "verify", "recover", "doctor"):
            done = started(command, place, PYTHONIOENCODING=encoding)
            assert (done.returncode, done.stderr) == (0, ""), command
        assert "\\xe4 = '\\u03b1'" in started("info", place, PYTHONIOENCODING="ascii").stdout
        assert "\\udcff" in started("verify", place, PYTHONIOENCODING=encoding).stdout
        assert "\\udcff" in started("ls", place + "/no", PYTHONIOENCODING=encoding).stderr


def test_no_attribute_of_a_stranger_commands_the_terminal(tmp_path: Path) -> None:
    with pmarray.open_group(tmp_path / "\x1b]0;title\x07") as group:
        group["x"] = np.zeros(2, [("\x1b[2J", "i4")])
        group.attrs["\x1b[2J\nkey"] = "\x1b[31m"
    for command in ("info", "ls", "head", "verify", "recover", "doctor"):
        place = f"{group.url}#x" if command == "head" else group.url
        done = started(command, place)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
    assert "\\x1b[2J\\nkey = " in started("info", group.url).stdout
    assert "\x1b" not in started("ls", f"{group.url}/no").stderr


# -- persistent memory -------------------------------------------------------------------------

PRETEND = """
import sys
from tests import machine
from tests.persistent import pretend_dax, pretend_devices
machine.apply()
with pretend_dax(), pretend_devices():
    from pmarray.cli import app
    app(prog_name="pmarray")
"""


def pretending(*args: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Call the command line where every file system takes MAP_SYNC, and dax* are devices."""
    with pretend_dax(), pretend_devices():
        return run(*args, answer=answer)


def pretending_apart(*args: object) -> subprocess.CompletedProcess[str]:
    """The same in another process."""
    return subprocess.run(
        [sys.executable, "-c", PRETEND, *map(str, args)],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip


def assert_can_be_written(done: subprocess.CompletedProcess[str], device: Path) -> None:
    """What doctor says of a device: nothing but libpmem makes stores to one durable."""
    if machine.has_libpmem():
        assert (done.returncode, done.stderr) == (0, "")
        assert f"open it as:  shelf:{device}" in done.stdout
    else:
        assert (done.returncode, done.stderr) == (3, "")
        assert "libpmem is missing" in done.stdout
        assert "read only" in done.stdout
        assert "open it as" not in done.stdout


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "dax0.0"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    return path


def test_doctor_of_a_directory(group: Path, fingerprint: Any) -> None:
    before = fingerprint(group.parent)
    done = run("doctor", f"memmap:{group}#x")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"open it as:  memmap:{group}" in done.stdout
    assert "MAP_SYNC is refused" in done.stdout
    assert "a group of pmarray" in done.stdout
    done = run("doctor", group.parent / "not/there")
    assert (done.returncode, "does not exist yet" in done.stdout) == (0, True)
    done = pretending("doctor", group)
    assert f"open it as:  shelf:{group}" in done.stdout
    assert "MAP_SYNC is granted" in done.stdout
    assert fingerprint(group.parent) == before


@pytest.mark.parametrize(
    ("url", "kind", "opens", "durability"),
    [("memmap:{0}/g#x", "directory", "memmap:{0}/g", "survives kill -9"),
     ("zarr:{0}/z", "directory", "zarr:{0}/z", "survives kill -9"),
     ("{0}/new.zarr", "does not exist yet", "zarr:{0}/new.zarr", "survives kill -9"),
     ("zarr:{0}/z.zip", "zip archive", "zarr:{0}/z.zip", "closed"),
     ("{0}/x.npy", ".npy file", "memmap:{0}/x.npy", "no transactions"),
     ("icechunk:{0}/i", "does not exist yet", "icechunk:{0}/i", "survives kill -9"),
     ("dram:name", "memory", "dram:name", "none"), ("zarr:memory://x", "memory", "zarr:m", "none"),
     ("zarr:s3://b/x?region=us-east-1", "object store", "zarr:s3://b/x", "no transactions")],
)  # fmt: skip
def test_doctor_of_a_url(
    url: str, kind: str, opens: str, durability: str, group: Path, fingerprint: Any
) -> None:
    root = group.parent
    np.save(root / "x.npy", np.zeros(3))
    pmarray.open(f"zarr:{root}/z", (3,)).close()
    before = fingerprint(root)
    found = examine(url.format(root))
    assert kind in found.facts["kind"]
    assert found.url is not None
    assert found.url.startswith(opens.format(root))
    assert durability in found.durability
    if "/z" in url and "zip" not in url:
        assert found.facts["holds"] == "a Zarr hierarchy"
    assert fingerprint(root) == before


@pytest.mark.parametrize("url", ["s3://bucket/x", "x.h5", "floppy:x", "zarr:gopher://x"])
def test_doctor_of_a_url_that_is_none(url: str) -> None:
    try:
        found = examine(url)
    except URLError:
        return
    assert found.url is None
    assert "cannot be used" in found.durability


@pytest.mark.parametrize("program", ["pmarray", "swag"])
def test_both_command_lines_have_the_same_habits(program: str) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return run(*words, program=program)

    assert call("-h").stdout == call("--help").stdout
    assert "--install-completion" in call("-h").stdout
    assert call("info", "-h").returncode == 0
    assert call("info").returncode == 2
    failed = call("info", "memmap:/not/there")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"{program}: ")
    if program == "pmarray":
        assert call("--version").stdout == f"pmarray {pmarray.__version__}\n"


def test_an_interrupt_is_status_130() -> None:
    source = """
import signal, time
import pmarray
from pmarray.cli import app

# A shell that runs the suite in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupted(*_, **__):
    signal.raise_signal(signal.SIGINT)
    time.sleep(10)  # it is delivered here, if not before

pmarray.open_group = interrupted
app(["ls", "dram:"])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("columns", ["20", "80", ""])
def test_no_name_is_cut(columns: str, tmp_path: Path) -> None:
    name, unit = "layer1.attention.query_key_value.weight_" + "x" * 60, "of a long text " * 20
    with pmarray.open_group(tmp_path) as group:
        group.create(name, (1000, 20, 3), layout="col")
        group.attrs["unit"] = unit
    done = run("info", tmp_path, COLUMNS=columns)
    assert name in done.stdout
    assert "(1000, 20, 3)" in done.stdout
    assert unit in done.stdout
    assert run("ls", tmp_path, COLUMNS=columns).stdout == f"{name}\n"


def test_doctor_measures_reads_where_there_is_something_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pmarray.open_group(tmp_path / "g") as group:
        group["x"] = np.arange(1 << 18)
    done = run("doctor", tmp_path / "g", "--reads")
    assert "not measured: an array of 64 MiB or more is needed" in done.stdout
    monkeypatch.setattr(reading, "_TRIAL_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "_SIZES", (64 << 10, 256 << 10))
    said = reading.describe_reads(str(tmp_path / "g"))
    limits = re.search(r"set\(read_requests=(\d+), request_bytes=(\d+)\)", said)
    assert limits is not None
    assert int(limits[1]) in (1, 2, 4, 8, 16)
    assert int(limits[2]) in (64 << 10, 256 << 10)
    assert pmarray.config.read_requests == 8


def test_doctor_of_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place, says in ((tmp_path / "file", "it is a file"),
                        ("/dev/null", "not one of persistent memory")):  # fmt: skip
        done = run("doctor", place)
        assert done.returncode == 3
        assert f"cannot be used: {says}" in done.stdout.replace(f"{place} is a device, but ", "")
        assert "open it as" not in done.stdout


def mounted(place: Path, kind: str, options: str) -> str:
    """A line of mountinfo that says how the file system of a place is mounted."""
    device = place.stat().st_dev
    return f"27 1 {os.major(device)}:{os.minor(device)} / / rw,relatime - {kind} x rw,{options}\n"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("ext4", "discard", "survives kill -9 and power cuts, by fsync"),
        ("ext4", "nobarrier,discard", "ext4 is mounted with nobarrier"),
        ("ext3", "barrier=0", "ext3 is mounted with barrier=0"),
        ("overlay", "upperdir=/not/here,workdir=/not", "which is not seen from here"),
        ("overlay", "upperdir={here},workdir=/not", "which is not seen from here"),
        ("overlay", "lowerdir=/a", "which is not seen from here"),
        ("overlay", "upperdir=/not/here,volatile", "overlay is mounted with volatile"),
        ("overlay", "upperdir=/not/here,fsync=volatile", "overlay is mounted with fsync=volatile"),
        ("overlay", "upperdir={shm}", "none beyond a reboot: tmpfs is memory"),
    ],
)
def test_doctor_of_mounts_that_lose_writes(
    kind: str, options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "{shm}" in options and not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    (tmp_path / "mounts").write_text(
        mounted(tmp_path, kind, options.format(here=tmp_path, shm="/dev/s\\150m"))
        + (mounted(Path("/dev/shm"), "tmpfs", "size=1k") if "{shm}" in options else "")
    )
    monkeypatch.setattr(doctor, "_MOUNTS", str(tmp_path / "mounts"))
    done = run("doctor", tmp_path)
    assert said in done.stdout
    where = "overlay over tmpfs" if "{shm}" in options else kind
    assert f"file system: {where}\n" in done.stdout.replace("file system:  ", "file system: ")


def test_doctor_of_this_machine() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert ("apt install libpmem1" in done.stdout) == (not machine.has_libpmem())
    assert "DAX devices:" in done.stdout


@pytest.mark.uses("libpmem")
def test_doctor_of_a_device(device: Path) -> None:
    done = pretending("doctor", device)
    assert_can_be_written(done, device)
    for word in ("DAX device", "16 MiB", "2 MiB", "nothing, by all appearances"):
        assert word in done.stdout
    assert not any(device.read_bytes())
    with device.open("r+b") as file:
        file.write(b"XFSB")
    done = pretending("doctor", device)
    assert done.returncode == 3
    assert "an XFS file system" in done.stdout
    assert "open it as" not in done.stdout


@pytest.mark.uses("libpmem")
def test_format_asks_and_then_overwrites(device: Path) -> None:
    with device.open("r+b") as file:
        file.write(b"XFSB")
    before = device.read_bytes()
    done = pretending("format", device, answer="n\n")
    assert done.returncode == 1
    assert "holds an XFS file system. Overwrite it?" in done.stdout
    assert device.read_bytes() == before
    done = pretending("format", device, answer="y\n")
    assert done.returncode == 0, done.stderr
    assert f"open it as shelf:{device}" in done.stdout
    done = pretending("doctor", device)
    assert "a pool of pmarray with 0 arrays" in done.stdout
    assert_can_be_written(done, device)


def test_format_of_a_pool_deletes_its_arrays(device: Path) -> None:
    with pretend_devices(), pmarray.open(f"shelf:{device}", (3,)):
        pass
    assert "with 1 array" in pretending("doctor", device).stdout
    assert pretending("format", device, "--yes").returncode == 0
    with pretend_devices(), pmarray.open_group(f"shelf:{device}") as group:
        assert list(group) == []
        group.attrs["a"] = 1  # becomes the writer
        done = pretending_apart("format", device, "--yes")
        assert done.returncode == 1
        assert "is being written to" in done.stderr


def test_only_devices_are_formatted(tmp_path: Path) -> None:
    done = run("format", tmp_path, "--yes")
    assert done.returncode == 1
    assert done.stderr == (
        f"pmarray: {tmp_path} is no DAX device; a directory needs no formatting\n"
    )
