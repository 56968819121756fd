"""Without its raw pairs a dataset says what to download, from where, and where to put it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from dpgan.config import Params
from dpgan.errors import UserError
from dpgan.labels import known_datasets, load_card
from dpgan.stages.build import need_raw


@pytest.mark.parametrize("name", [name for name in known_datasets(ROOT / "data") if name != "toyscapes"])
def test_what_to_download_from_where_and_where_to_put_it(name: str, tmp_path: Path) -> None:
    card, raw = load_card(name, ROOT / "data"), tmp_path / "raw"
    params = Params(dataset=name, raw=str(raw))
    with pytest.raises(UserError) as told:
        need_raw(params, card)
    assert str(raw) in str(told.value)
    assert "http" in str(told.value)
    assert f"data/{name}/README.md" in str(told.value)
    raw.mkdir()
    need_raw(params, card)


def test_a_folder_under_dvc_is_pulled(tmp_path: Path) -> None:
    (tmp_path / "raw.dvc").touch()
    with pytest.raises(UserError, match=r"dvc pull .*raw\.dvc"):
        need_raw(Params(dataset="camvid", raw=str(tmp_path / "raw")), load_card("camvid", ROOT / "data"))


def test_what_to_download_is_no_part_of_what_is_trained() -> None:
    card = load_card("camvid", ROOT / "data")
    assert card.model_copy(update={"obtain": None}).digest == card.digest
