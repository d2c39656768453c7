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


def test_without_ray_its_package_is_asked_for(monkeypatch):
    monkeypatch.setattr(joining, "find_spec", lambda _: None)
    with (
        pytest.raises(UserError, match="needs Ray on every machine"),
        joined("auto"),
    ):
        pass
