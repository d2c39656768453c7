"""Hashes of files that are begun before they are asked for."""

import hashlib
import threading

import pytest

from stylesr_jax.runtime import files


def test_a_hash_that_was_begun_is_the_files(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    hashed, threads = files._sha256, []

    def note(path):
        threads.append(threading.current_thread())
        return hashed(path)

    monkeypatch.setattr(files, "_sha256", note)
    files.begin_sha256(file)
    assert files.sha256(file) == hashlib.sha256(b"weights").hexdigest()
    assert len(threads) == 1 and threads[0] is not threading.main_thread()
    assert files.sha256(file) == hashlib.sha256(b"weights").hexdigest()  # asked for once more
    assert len(threads) == 2 and threads[1] is threading.main_thread()


def test_a_hash_that_was_begun_is_not_another_versions(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    files.begin_sha256(file)
    file.write_bytes(b"others, of another size")
    assert files.sha256(file) == hashlib.sha256(b"others, of another size").hexdigest()


def test_no_hash_can_be_begun_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.begin_sha256(tmp_path / "nothing")
