"""DVC's folder of pickles: nobody else writes there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dvc_repo import make_repo

from dpgan.data.versions import dvc, settings, use_private_cache
from dpgan.environment import quiet_environment
from dpgan.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches/dpgan/dvc"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_dvc_keeps_its_pickles_in_a_private_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_environment()
    assert mode(cache) == 0o700
    root = make_repo(tmp_path / "project", None)
    (root / "data").write_text("data")
    dvc(root, "add", "data")
    assert list(cache.glob("repo/*/links/cache.db")), "the folder that DVC really uses"
    use_private_cache(root)
    assert settings(root)["core.site_cache_dir"] == str(cache)
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    dvc(root, "checkout", "--relink")
    assert list(cache.glob("repo/*/links/cache.db")), "also without our environment"
    assert mode(cache) == 0o700


@pytest.mark.parametrize("given", [True, False])
def test_a_folder_that_others_can_write_to_is_closed(cache: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    if given:
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(cache))
    quiet_environment()
    assert mode(cache) == 0o700


def test_a_folder_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match="another user's"):
        quiet_environment()
