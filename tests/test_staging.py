"""dpgan.data.staging: a node fetches the prepared data from the DVC remote once, whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from dvc_repo import make_repo, with_prepared

from dpgan.data import staging
from dpgan.data.prepare import data_hash, open_prepared
from dpgan.data.staging import Published, cache_folder, fetch, publish
from dpgan.errors import UserError


@pytest.fixture(scope="module")
def published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The tiny prepared data in a remote, whose path stands relative to the project in its configuration."""
    root = with_prepared(make_repo(tmp_path_factory.mktemp("published") / "project", "../remote"), tiny)
    data = publish(root)
    shutil.rmtree(root)  # a node sees the remote only
    return data


def test_a_node_fetches_once_though_many_workers_ask(
    published: Published, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    said: list[str] = []
    with ThreadPool(3) as pool:
        folders = pool.map(lambda _: fetch(published, "$NODE_DISK/dpgan", said.append), range(3))
    assert len(set(folders)) == 1
    assert len(said) == 1
    assert "GB into" in said[0]
    assert data_hash(folders[0]) == data_hash(tiny)
    for name in ("train", "val"):
        assert (open_prepared(folders[0], name).images == open_prepared(tiny, name).images).all()
    assert [path.name for path in folders[0].parent.iterdir() if not path.name.startswith(".")] == [folders[0].name]
    assert not list(folders[0].parent.glob(".*.part"))


def test_what_was_interrupted_is_fetched_whole(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(root: Path, *words: str) -> str:
        (root / staging.PREPARED).mkdir()
        (root / staging.PREPARED / "meta.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(staging, "dvc", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(published, str(tmp_path), print)
    assert data_hash(fetch(published, str(tmp_path), print))


def test_mistakes_are_told(published: Published, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match=r"run\.data_cache \$NOWHERE/x: \$NOWHERE is not set on node "):
        cache_folder("$NOWHERE/x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.data_cache .*/file/x on node \S+: Not a directory"):
        fetch(published, str(tmp_path / "file/x"), print)
    gone = replace(published, digest="0" * 32 + ".dir", size=1)
    with pytest.raises(UserError, match=r"dvc pull --force: .*Missing cache files"):
        fetch(gone, str(tmp_path), print)
    with pytest.raises(UserError, match="are free"):
        fetch(replace(gone, size=10**18), str(tmp_path), print)
    with pytest.raises(UserError, match=r"is not what dvc\.lock says"):
        fetch(replace(published, data_hash="another"), str(tmp_path), print)
    root = make_repo(tmp_path / "project", None)
    with pytest.raises(UserError, match=r"dvc\.lock knows no prepared data.*dvc repro prepare"):
        publish(root)
    with_prepared(root, tiny)
    with pytest.raises(UserError, match="dvc remote add --default storage"):
        publish(root)
