"""What the system says of files becomes a sentence; what is no such thing stays what it is."""

from __future__ import annotations

import errno

import pytest

from limbeck.errors import DataError, StorageError, storage_errors

ROOM = r"there must be room on the disk for what is written, received: .*No space left.*\. Make room, and run the same command"


def over(first: BaseException, second: BaseException) -> None:
    """As libraries do that clean up after an error and fail at it."""
    try:
        raise first
    except BaseException:
        raise second  # noqa: B904


FULL = OSError(errno.ENOSPC, "No space left on device", "/out/x")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(
            "[Errno 28] Error writing bytes to file. Detail: No space left on device"
        ),  # as pyarrow, but for its number
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_whoever_says_so(error):
    if isinstance(error, OSError):
        error.errno = errno.ENOSPC
    with pytest.raises(StorageError, match=ROOM), storage_errors():
        raise error


def test_a_full_disk_that_another_error_hides():
    with pytest.raises(StorageError, match=ROOM), storage_errors():
        over(FULL, RuntimeError("unexpected pos 704 vs 598"))


def test_a_file_that_is_gone_is_named(tmp_path):
    words = r"must be there and be read and written .* received: No such file or directory: .*absent\. See to that"
    with pytest.raises(StorageError, match=words), storage_errors():
        (tmp_path / "absent").read_text()


def test_everything_else_passes():
    for error in (ZeroDivisionError("x"), DataError("a sentence"), ConnectionResetError(104, "a server's")):
        with pytest.raises(type(error)) as found, storage_errors():
            raise error
        assert found.value is error
    with pytest.raises(RuntimeError, match="a bug"), storage_errors():
        over(FileNotFoundError(errno.ENOENT, "tried another place first", "x"), RuntimeError("a bug"))
