"""Checkpoints of the official codes: read, checked key by key, saved as ours, registered; and never executed."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from test_cli import fails, project
from torch import Tensor, nn

from dpgan.cli import main
from dpgan.errors import UserError
from dpgan.models.discriminators import DPDiscriminator
from dpgan.models.files import import_network, save_network
from dpgan.models.generators import Generator, build_generator
from dpgan.models.official import load_official_discriminator, load_official_generator, official_views

__all__ = ["project"]
SIZES = {"num_classes": 5, "noise_channels": 64, "width": 1, "pyramid_width": 6}
TINY: dict[str, dict[str, Any]] = {
    "dp": {"kind": "dp", **SIZES, "concat_s0": True},
    "w/o cat": {"kind": "dp", **SIZES, "concat_s0": False},
    "oasis": {"kind": "oasis", **SIZES},
}
SPADE = {"kind": "spade", "num_classes": 5, "width": 1, "pyramid_width": 6}


def generator(name: str, **changes: Any) -> Generator:
    torch.manual_seed(0)
    model = build_generator(**{**(TINY | {"spade": SPADE})[name], **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # the initial weights are so small that no difference would show
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        model(torch.randint(0, model.num_classes, (2, 64, 64)), torch.randn(2, 64))  # statistics, and a power iteration
    return model.eval()


def official(model: nn.Module) -> dict[str, Tensor]:
    """A state dict as the official code would have it."""
    state = {k: v.clone() for k, v in official_views(model.state_dict()).items()}
    shared = {k: v for k, v in state.items() if "norm_0.first_norm" in k}
    for i, block in enumerate(getattr(model, "blocks", [])):
        if block.learned_shortcut:
            state |= {k.replace("norm_0", "norm_s"): v.clone() for k, v in shared.items() if k.startswith(f"body.{i}.")}
    return state


def by_its_keys(state: dict[str, Tensor], labels: Tensor, noise: Tensor, doubles: set[int]) -> Tensor:
    """A generator of SPADE blocks in eval mode, in plain steps from the papers, on a state dict in official names.

    `doubles`: the blocks that nearest 2x upsampling lies before.
    """
    one_hot = F.one_hot(labels, 5).movedim(-1, 1).to(noise.dtype)
    condition = torch.cat([noise[:, :, None, None].expand(-1, -1, *labels.shape[1:]), one_hot], dim=1)

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state.get(f"{name}.weight")
        if weight is None:
            weight = state[f"{name}.weight_orig"]
            weight = weight / (state[f"{name}.weight_u"] @ weight.flatten(1) @ state[f"{name}.weight_v"])
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[2] // 2)

    def spade(x: Tensor, name: str) -> Tensor:
        normalised = F.batch_norm(x, *(state[f"{name}.first_norm.running_{s}"] for s in ("mean", "var")))
        hidden = F.relu(conv(F.interpolate(condition, size=x.shape[2:]), f"{name}.mlp_shared.0"))
        return normalised * (1 + conv(hidden, f"{name}.mlp_gamma")) + conv(hidden, f"{name}.mlp_beta")

    x = conv(F.interpolate(condition, scale_factor=1 / 32), "fc")
    i = 0
    while f"body.{i}.conv_0.bias" in state:
        x = F.interpolate(x, scale_factor=2.0) if i in doubles else x
        h = x
        for n in (0, 1):
            h = conv(F.leaky_relu(spade(h, f"body.{i}.norm_{n}"), 0.2), f"body.{i}.conv_{n}")
        x = h + (conv(spade(x, f"body.{i}.norm_s"), f"body.{i}.conv_s") if f"body.{i}.conv_s.weight_u" in state else x)
        i += 1
    return torch.tanh(conv(F.leaky_relu(x, 0.2), "conv_img"))


@pytest.mark.parametrize(("name", "doubles"), [("oasis", {1, 2, 3, 4, 5}), ("spade", {1, 3, 4, 5, 6})])
def test_the_baselines_are_what_their_papers_say(name: str, doubles: set[int]) -> None:
    model = generator(name)
    state = official(model)
    assert {"fc.weight", "body.4.norm_s.mlp_shared.0.weight", "body.5.norm_1.mlp_beta.bias"} <= set(state)
    labels, noise = torch.randint(0, 5, (2, 32, 64)), torch.randn(2, 64).double()
    with torch.no_grad():
        ours = model.double()(labels, noise)
        noise = noise[:, : model.noise_channels]
        plain = by_its_keys({k: v.double() for k, v in state.items()}, labels, noise, doubles)
    assert plain.std() > 0.1
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_generators_are_recognised_and_saved_as_ours(name: str, suffix: str, tmp_path: Path) -> None:
    model, path, ours = generator(name), tmp_path / f"theirs.{suffix}", tmp_path / "ours.safetensors"
    state = {f"module.{key}": value for key, value in official(model).items()}  # as nn.DataParallel saves it
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    network = import_network(path)
    assert (network.role, network.arguments) == ("generator", TINY[name])
    save_network(network, ours)
    again = import_network(ours)  # built from its own header
    assert (again.role, again.arguments) == (network.role, network.arguments)
    for key, value in model.state_dict().items():
        assert torch.equal(value, network.module.state_dict()[key])
        assert torch.equal(value, again.module.state_dict()[key])


@pytest.mark.parametrize("heads", [True, False])
def test_discriminators_are_recognised(heads: bool, tmp_path: Path) -> None:
    model = DPDiscriminator(5, width=2, patch_at="encoder" if heads else "none")
    torch.save(official(model), tmp_path / "d.pth")
    network = import_network(tmp_path / "d.pth")
    assert (network.role, network.arguments["kind"]) == ("discriminator", "dp" if heads else "oasis")
    assert all(torch.equal(v, network.module.state_dict()[k]) for k, v in model.state_dict().items())


def test_counters_may_be_missing() -> None:
    state = {k: v for k, v in official(generator("oasis")).items() if not k.endswith("num_batches_tracked")}
    load_official_generator(state)


@pytest.mark.parametrize("name", ["dp", "oasis"])
def test_what_does_not_fit_is_named_key_by_key(name: str) -> None:
    state = official(generator(name))
    inner = state["body.1.conv_0.bias"].shape[0]
    state["body.1.conv_0.bias"] = torch.zeros(3)
    state["extra"] = state.pop("fc.bias")
    with pytest.raises(UserError) as error:
        load_official_generator(state)
    assert str(error.value).splitlines() == [
        "does not fit:",
        f"'body.1.conv_0.bias' has shape (3,), expected ({inner},)",
        "missing key 'fc.bias'",
        "unexpected key 'extra'",
    ]
    state = official(generator(name))
    state["body.2.norm_s.first_norm.running_mean"] = state["body.2.norm_0.first_norm.running_mean"] + 1
    with pytest.raises(UserError, match="norm_0"):
        load_official_generator(state)
    with pytest.raises(UserError, match=r"conv_img\.weight"):
        load_official_generator({})
    with pytest.raises(UserError, match=r"'conv_img\.weight' has shape \(3,\)"):
        load_official_generator({"conv_img.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"missing key 'body_down\.0\.conv1\.0\.bias'"):
        load_official_discriminator({"layer_up_last.weight": torch.zeros(6, 2, 1, 1)})


class Poison:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)

    def __init__(self, target: Path) -> None:
        self.target = target


def test_a_poisoned_pickle_is_refused_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "executed"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"conv_img.weight": Poison(target)}))
    torch.save({**official(generator("dp")), "conv_img.bias": Poison(target)}, tmp_path / "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        assert "holds more than tensors" in fails(capsys, "import-checkpoint", str(tmp_path / name))
    assert not target.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # it would have worked
    assert target.exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("no.pth", None, "no such file"),
        ("a.pth", b"not a checkpoint", "is damaged"),
        ("a.safetensors", b"not a checkpoint", "is damaged"),
        ("a.pth", {"epoch": 3, "conv_img.weight": torch.zeros(1)}, "'epoch' is no tensor"),
        ("a.pth", [torch.zeros(1)], "not a state dict"),
        ("a.pth", {"conv1.weight": torch.zeros(1)}, "not the state dict of an official DP-GAN or OASIS network"),
    ],
)
def test_files_that_are_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, expected: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    error = fails(capsys, "import-checkpoint", str(path), "--out", str(tmp_path / "out.safetensors"))
    assert str(path) in error
    assert expected in error
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_saves_and_registers(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from dpgan.registry.packaging import load_files
    from dpgan.registry.store import tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run(["git", "init", "-q"], check=True)
    model = generator("oasis", num_classes=3)
    torch.save(official(model), project / "g.pth")
    torch.save(official(generator("oasis")), project / "five.pth")
    torch.save(official(DPDiscriminator(3, width=1)), project / "d.pth")

    refused = fails(capsys, "import-checkpoint", "five.pth", "--register")
    assert "knows 5 classes, data/tiny/dataset.yaml has 3" in refused
    assert "only generators are registered" in fails(capsys, "import-checkpoint", "d.pth", "--register")
    assert "cannot be written" in fails(capsys, "import-checkpoint", "d.pth", "--out", "no/folder.safetensors")
    assert not (project / "mlruns").exists()

    arguments = ["import-checkpoint", "g.pth", "--out", "ours.safetensors", "--register"]
    assert main(arguments) == main(arguments) == 0  # the second time it is there already
    out = capsys.readouterr().out
    assert out.count("dpgan-tiny version 1, without an alias") == 2
    with safe_open(project / "ours.safetensors", "pt") as file:
        assert "oasis" in file.metadata()["dpgan"]
    uri = tracking_uri(project)
    client = MlflowClient(uri)
    assert client.get_registered_model("dpgan-tiny").aliases == {}
    (version,) = client.search_model_versions("name = 'dpgan-tiny'")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["imported.file"] == "g.pth"
    content = load_files(uri, "dpgan-tiny", 1)
    assert content.config["generator"] == {**TINY["oasis"], "num_classes": 3}
    assert all(torch.equal(v, content.weights[k]) for k, v in model.state_dict().items())
