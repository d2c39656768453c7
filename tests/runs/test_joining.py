"""Addresses where no Ray cluster answers end in one line, after a bounded wait."""

import os
import socket
from contextlib import contextmanager

import pytest

from buckets import free_port
from stylesr_jax.errors import UserError
from stylesr_jax.runs import joining
from stylesr_jax.runs.joining import check_answers, joined


@contextmanager
def silent():
    """The address of a server that accepts and never answers."""
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answers(monkeypatch):
    """Lets attempts to join end as a list says; they note the mode of authentication."""
    modes, found = [], []

    def tried(_):
        modes.append(os.environ.get(joining.AUTH_MODE))
        return found.pop(0)

    monkeypatch.setattr(joining, "_tried", tried)
    monkeypatch.setenv(joining.AUTH_MODE, "")  # put back at the end
    monkeypatch.delenv(joining.AUTH_MODE)
    with silent() as address:
        yield address, found, modes


def test_an_address_where_nobody_listens_is_refused_at_once():
    with pytest.raises(UserError, match=r"no Ray cluster answers .*refused.*ray start --head"):
        check_answers(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Ray cluster answers"):
        check_answers("no-such-host.invalid:6379")


@pytest.mark.parametrize("text", ["rubbish", "host", ":6379", "ray://host:1", "host:99999", "a:b"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="that is not HOST:PORT"):
        check_answers(text)


def test_attempts_have_a_time_limit(monkeypatch):
    monkeypatch.setattr(joining, "_TRY", "import time; time.sleep(600)")
    monkeypatch.setattr(joining, "ANSWER", 1.0)
    with silent() as address, pytest.raises(UserError, match="no answer within 1 seconds"):
        check_answers(address)


def test_a_token_is_given_if_the_cluster_asks_for_one(answers):
    address, found, modes = answers
    found += ["Unauthenticated: InvalidAuthToken: missing\nFailed to connect", ""]
    check_answers(address)
    assert modes == [None, "token"]


@pytest.mark.parametrize(
    "second", ["InvalidAuthToken", "no authentication token was found. Ensure"]
)
def test_a_token_that_is_not_here_is_asked_for(answers, second):
    address, found, _ = answers
    found += ["InvalidAuthToken", second]
    with pytest.raises(UserError, match=f"{address}: the cluster asks for a token"):
        check_answers(address)


def test_the_users_mode_of_authentication_is_kept(answers, monkeypatch):
    address, found, modes = answers
    monkeypatch.setenv(joining.AUTH_MODE, "disabled")
    found += ["InvalidAuthToken"]
    with pytest.raises(UserError, match="asks for a token"):
        check_answers(address)
    assert modes == ["disabled"]


def test_the_reason_is_the_last_line(answers):
    address, found, _ = answers
    found += ["a warning\nVersion mismatch: The cluster was started with Ray 2.59"]
    with pytest.raises(UserError, match=r"\(Version mismatch: .* Ray 2.59\)"):
        check_answers(address)


@pytest.fixture
def note(tmp_path, monkeypatch):
    """Notes an address as `ray start` does."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(joining, "find_spec", lambda _: True)
    monkeypatch.setattr(joining, "QUIET", {})  # else it stays in the environment

    def begun():
        raise UserError("begun")

    monkeypatch.setattr(joining, "imported", begun)
    (tmp_path / "ray").mkdir()
    return (tmp_path / "ray" / "ray_current_cluster").write_text


def _join_auto():
    with joined("auto"):
        raise AssertionError("there is no cluster")


def test_auto_tries_the_cluster_of_this_machine_first(answers, note):
    address, found, modes = answers
    note(f"{address}\n")
    found += ["InvalidAuthToken", ""]
    with pytest.raises(UserError, match="begun"):
        _join_auto()
    assert modes == [None, "token"] and not found


def test_auto_asks_for_the_token_of_the_cluster_of_this_machine(answers, note):
    address, found, _ = answers
    note(address)
    found += ["InvalidAuthToken", "no authentication token was found. Ensure"]
    with pytest.raises(UserError) as error:
        _join_auto()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--cluster auto: this machine's cluster, {address}: the cluster asks")
    assert "RAY_AUTH_TOKEN" in line and "RAY_ADDRESS=local" in line


def test_auto_does_not_wait_for_a_cluster_that_has_gone(note):
    note(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"no Ray cluster answers .*refused.*ray stop forgets it"):
        _join_auto()
    note("rubbish")
    with pytest.raises(UserError, match=r"rubbish: that is not HOST:PORT; ray stop"):
        _join_auto()


def test_auto_passes_over_the_cluster_of_this_machine_if_told(answers, note, monkeypatch):
    address, found, modes = answers
    with pytest.raises(UserError, match="begun"):  # nothing is noted
        _join_auto()
    note(f"127.0.0.1:{free_port()}")
    for where in ("local", address):
        monkeypatch.setenv("RAY_ADDRESS", where)
        found += [""]
        with pytest.raises(UserError, match="begun"):
            _join_auto()
    assert modes == [None]  # at the address alone


class _Broken:
    """A package ray that cannot join."""

    @staticmethod
    def init(**_):
        raise Exception("The current node timed out during startup.\nMore")


def test_what_ray_raises_is_one_line(answers, note, monkeypatch):
    address, found, _ = answers
    monkeypatch.setattr(joining, "imported", lambda: _Broken)
    with pytest.raises(UserError, match=r"could not start a cluster here \(.*startup\.\); leave"):
        _join_auto()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"--cluster auto: no Ray .*startup\.\); start one"):
        _join_auto()
    monkeypatch.delenv("RAY_ADDRESS")
    note(address)
    found += ["", ""]
    with pytest.raises(UserError, match=rf"machine's cluster, {address}: .*startup\.\); ray stop"):
        _join_auto()
    with (
        pytest.raises(UserError, match=rf"--cluster {address}: no Ray .*startup\.\); start one"),
        joined(address),
    ):
        pass


def test_without_ray_its_package_is_asked_for(monkeypatch):
    monkeypatch.setattr(joining, "find_spec", lambda _: None)
    with (
        pytest.raises(UserError, match="needs Ray on every machine"),
        joined("auto"),
    ):
        pass
