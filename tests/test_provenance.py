"""What a run was made from: what the tags and the receipt say."""

from pathlib import Path

import pytest
from conftest import ROOT

from dpgan.errors import UserError
from dpgan.files import file_sha256
from dpgan.registry.provenance import provenance, training_facts, versions


def test_the_locks_and_the_image_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPGAN_IMAGE_DIGEST", raising=False)
    found = provenance(ROOT)
    assert len(found["git.commit"]) == 40
    assert found["requirements.lock_sha256"] == file_sha256(ROOT / "requirements.lock")
    assert found["image.digest"] == "none"
    monkeypatch.setenv("DPGAN_IMAGE_DIGEST", "sha256:c0ffee")
    assert provenance(ROOT)["image.digest"] == "sha256:c0ffee"


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a git repository"):
        provenance(tmp_path)


def test_what_a_manifest_does_not_record_is_null() -> None:
    facts = training_facts({"facts": {"git.commit": "c0ffee"}, "seed": 3, "later": 1})
    assert (facts["git.commit"], facts["seed"], facts["restarts"]) == ("c0ffee", 3, None)
    assert "later" not in facts


def test_versions_are_those_of_the_lock() -> None:
    locked = (ROOT / "requirements.lock").read_text()
    assert all(f"{name}=={version}" in locked for name, version in versions().items() if name != "python")
