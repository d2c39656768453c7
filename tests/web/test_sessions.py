"""What the server keeps for open pages."""

import pytest

from stylesr_jax.errors import UserError
from stylesr_jax.web import sessions
from stylesr_jax.web.sessions import Sessions


def test_a_page_finds_its_own_session_again(tmp_path):
    kept = Sessions(tmp_path)
    one, two = kept.get("one"), kept.get("two")
    assert one is not two and one.folder != two.folder and one.folder.is_dir()
    assert kept.get("one") is one and one.folder.parent == tmp_path


def test_nothing_is_left_of_a_page_that_was_closed(tmp_path):
    kept = Sessions(tmp_path)
    session = kept.get("one")
    (session.folder / "solution_0.png").write_bytes(b"x")
    kept.forget("one")
    kept.forget("never there")
    assert session.stop.is_set() and not any(tmp_path.iterdir()) and len(kept) == 0


def test_the_page_that_was_used_longest_ago_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "MOST", 2)
    kept = Sessions(tmp_path)
    one, two = kept.get("one"), kept.get("two")
    kept.get("one")
    kept.get("three")
    assert kept.get("one") is one and two.stop.is_set() and not two.folder.exists()
    kept.forget_all()
    assert not any(tmp_path.iterdir())


def test_what_is_missing_is_said(tmp_path):
    session = Sessions(tmp_path).get("one")
    for name in ("observation", "brought", "finding"):
        with pytest.raises(UserError):
            getattr(session, name)
