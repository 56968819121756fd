"""N workers train what one trains, on real gloo: whatever their shares, micro-batches, strategy and precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_job import CPU, job
from torch import Tensor

from dpgan.data import order
from dpgan.data.loader import Source, batches
from dpgan.data.prepare import open_prepared
from dpgan.training.assemble import Training
from dpgan.training.build import Job, build
from dpgan.training.strategy import DDPEngine, sum_over_workers

# Batches of 7, 7 and 5: on 2 workers 3 + 4 and 2 + 3, on 4 workers 1 + 2 + 2 + 2 and 1 + 1 + 1 + 2. Every loss.
SETTINGS: dict[str, Any] = {
    "batch": 7, "images": 19, "discriminator_spectral_norm": False, "feature_matching": "relative",
    "losses": {"perceptual": 1.0, "l1": 1.0}, "lr_generator": 1e-4, "lr_discriminator": 1e-4, "ema": 0.5,
}  # fmt: skip
DEEPSPEED, ZERO_1, ZERO_2 = ({"strategy": "deepspeed", "zero_stage": stage} for stage in range(3))


class Case(NamedTuple):
    """A training of three steps, the strategy that goes on with it before the last, and whether it runs in fp64."""

    job: Job
    then: Job | None
    fp64: bool = False
    eps: float = 1.0  # of Adam: it would scale a vanishing gradient, which is rounding noise, to 1


def case(tiny: Path, run: dict[str, Any], then: dict[str, Any] | None = None, **changes: Any) -> Case:
    task = job(tiny, tiny, 1, **{**SETTINGS, **changes})
    first, last = (replace(task, run=task.run.model_copy(update=r or {})) for r in (run, then))
    return Case(first, None if then is None else last)


def exact_case(tiny: Path, **changes: Any) -> Case:
    """In fp64, but for the losses; without MobileNet, which computes in fp32."""
    return case(tiny, {}, losses={"l1": 1.0}, **changes)._replace(fp64=True)


def start(task: Job, fp64: bool = False, eps: float = 1.0) -> Training:
    data = open_prepared(task.prepared, "train")
    samples, _ = order.split_holdout(task.seed, len(data.ids), task.settings.holdout)
    torch.set_default_dtype(torch.float64 if fp64 else torch.float32)
    training = build(task, CPU, data, samples)
    torch.set_default_dtype(torch.float32)
    if fp64:  # the generator's photos are fp32
        training.discriminator.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    for engine in training.engines.values():
        engine.optimizer.param_groups[0]["eps"] = eps
    return training


def weights(training: Training) -> dict[str, Tensor]:
    return {
        f"{name} {key}": value.double()
        for name, module in training.modules.items()
        for key, value in module.state_dict().items()
    }


def taken_over(training: Training, by: Job) -> Training:
    """Another strategy with the same weights and optimizer state."""
    states = {name: engine.state() for name, engine in training.engines.items()}
    other = start(by)
    for name, module in other.modules.items():
        module.load_state_dict(training.modules[name].state_dict())
    for name, engine in other.engines.items():
        engine.load(states[name])
        same = engine.state()
        assert same.keys() == states[name].keys()
        assert all(torch.equal(value, same[key]) for key, value in states[name].items())
    return other


def train(case: Case, rank: int = 0, workers: int = 1) -> dict[str, Tensor]:
    """The losses of every step, how far weights and buffers moved, and the optimizers' states: the last gradients."""
    task, s, data = case.job, case.job.settings, open_prepared(case.job.prepared, "train")
    samples, _ = order.split_holdout(task.seed, len(data.ids), s.holdout)
    steps, dtype = range(-(-s.images // s.batch)), torch.float64 if case.fp64 else torch.float32
    source = Source(data.images, data.labels, samples, seed=task.seed, batch=s.batch, total=s.images,
                    accumulate=s.accumulate, rank=rank, workers=workers, steps=steps, flip=True, crop=None)  # fmt: skip
    training, results = start(task, case.fp64, case.eps), {}
    before = weights(training)
    for batch in batches(source, CPU):
        if batch.step == steps[-1] and case.then:
            training = taken_over(training, case.then)
        noise = [torch.from_numpy(order.noise_at(task.seed, batch.positions, s.noise_channels, n)) for n in range(2)]
        terms = training.step(
            batch.images.to(dtype),
            batch.labels,
            lambda draw, noise=noise: noise[draw].to(dtype),  # type: ignore[misc]
            torch.from_numpy(order.labelmix_table(task.seed, batch.step, task.card.num_classes)),
            progress=0.0,
            sizes=batch.sizes,
        )
        results |= {f"loss {name} {batch.step}": sum_over_workers(value.clone()) for name, value in terms.items()}
    results["skipped"] = torch.tensor(training.step.skipped)
    results |= {f"moved {name}": value - before[name] for name, value in weights(training).items()}
    for name, engine in training.engines.items():
        results |= {f"{name} {key}": value.double() for key, value in engine.state().items()}
    return results


def worker(rank: int, workers: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    results = [train(case, rank, workers) for case in cases]
    results += [overflow_on_the_last(rank, workers, fp16) for fp16 in (True, False)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def overflow_on_the_last(rank: int, workers: int, fp16: bool) -> dict[str, Tensor]:
    """What an engine holds after two updates, the second with a gradient that is inf on one worker only."""
    module = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(module.weight)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    engine = DDPEngine(module, optimizer, CPU, fp16=fp16)
    results = {}
    for name, factor in (("first", 1.0), ("second", float("inf") if rank == workers - 1 else 1.0)):
        engine.backward(engine(torch.ones(2, 3), last=True).mean() * factor)
        results |= {f"{name} moved": torch.tensor(engine.step()), f"{name} weight": module.weight.detach().clone()}
        results |= {f"{name} {key}": value for key, value in engine.state().items()}
    return results


def train_together(folder: Path, workers: int, cases: list[Case]) -> list[dict[str, Tensor]]:
    """The cases' results on `workers` processes, which all must hold the same, bit for bit."""
    mp.spawn(worker, args=(workers, str(folder), cases), nprocs=workers)
    first, *others = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(workers))
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    return list(first)


Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def two(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two workers trained, by the name of the case."""
    cases = {
        "fp64": exact_case(tiny),
        "fp64, accumulate": exact_case(tiny, accumulate=2),
        "zero 1, then ddp": case(tiny, ZERO_1, {}),
        "deepspeed, then zero 2, accumulate": case(tiny, DEEPSPEED, ZERO_2, accumulate=2),
    }
    results = train_together(tmp_path_factory.mktemp("two"), 2, list(cases.values()))
    return dict(zip([*cases, "overflow, fp16", "overflow, fp32"], results, strict=True))


def assert_equal(ours: dict[str, Tensor], alone: dict[str, Tensor]) -> None:
    """To the rounding of fp32, which the losses and the generator's photos are in: 1e-6 of each tensor's largest
    value, or where all of it is rounding, 1e-9 of the largest of its kind."""
    assert ours.keys() == alone.keys()
    kinds = {name: name.rpartition(" ")[0] + name.rpartition(".")[2] * (".exp" in name) for name in alone}
    largest = {kind: max(float(alone[n].abs().max()) for n, k in kinds.items() if k == kind) for kind in kinds.values()}
    for name, value in alone.items():
        tolerance = 1e-6 * float(value.abs().max()) + 1e-9 * largest[kinds[name]]
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_workers_train_what_one_trains(two: Results, tiny: Path, accumulate: int) -> None:
    """Losses, weights, buffers, EMA and gradients, over three steps with uneven shares and a smaller last batch."""
    ours = two["fp64" if accumulate == 1 else "fp64, accumulate"]
    assert_equal(ours, train(exact_case(tiny, accumulate=accumulate)))


def test_four_workers_train_what_one_trains(tiny: Path, tmp_path: Path) -> None:
    ours, *_ = train_together(tmp_path, 4, [exact_case(tiny)])
    assert_equal(ours, train(exact_case(tiny)))


@pytest.mark.parametrize(("name", "accumulate"), [("zero 1, then ddp", 1), ("deepspeed, then zero 2, accumulate", 2)])
def test_every_strategy_has_the_losses_of_ddp(two: Results, tiny: Path, name: str, accumulate: int) -> None:
    """In fp32, through a change of the strategy, whose engines' states are equal bit for bit (`taken_over`)."""
    for loss, expected in train(case(tiny, {}, accumulate=accumulate)).items():
        if loss.startswith("loss"):
            torch.testing.assert_close(
                two[name][loss], expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=loss: f"{n}: {m}"
            )


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_an_overflow_on_one_worker_leaves_the_update_out_on_all(two: Results, precision: str) -> None:
    ours = two[f"overflow, {precision}"]  # the same on both
    assert ours["first moved"].item() is True
    assert ours["second moved"].item() is False
    for key in ("weight", "0.step", "0.exp_avg", "0.exp_avg_sq"):
        assert torch.equal(ours[f"first {key}"], ours[f"second {key}"])
    if precision == "fp16":
        assert ours["second scaler.scale"] == ours["first scaler.scale"] / 2


@pytest.mark.parametrize(("precision", "band", "skipped"), [("bf16", 0.02, 0), ("fp16", 0.03, 6)])
def test_half_precision_follows_fp32(tiny: Path, precision: str, band: float, skipped: int) -> None:
    """Over twelve steps, in which the generator's loss falls by 6%; the discriminator's within 0.1%.

    fp16 leaves out some of the first updates, until its loss scale has come down: it starts a little behind.
    """
    short = {"images": 48, "batch": 4, "losses": {"l1": 1.0}}
    exact, half = (train(case(tiny, {}, precision=p, **short)._replace(eps=1e-8)) for p in ("fp32", precision))
    assert exact["loss G_total 11"] < 0.95 * exact["loss G_total 0"]
    for step in range(12):
        for network, tolerance in (("G", band), ("D", 0.001)):
            ours, expected = (losses[f"loss {network}_total {step}"].item() for losses in (half, exact))
            assert ours == pytest.approx(expected, rel=tolerance), (network, step)
    assert half["skipped"] <= skipped
    assert any(not torch.equal(half[name], exact[name]) for name in half)
