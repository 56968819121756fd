"""DeepSpeed beside DDP: ZeRO shards the optimizer's state (1), and the gradients too (2), over the workers.

The only module that imports deepspeed, and only a run that asks for it imports this one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpgan.training.strategy import copied, entries, finite_gradients, flat_state, load_state


class DeepSpeedEngine:
    """An engine whose gradients DeepSpeed averages, in fp32, whatever `dtype` the convolutions compute in.

    `module` holds as submodules exactly what `optimizer` trains. DeepSpeed takes contiguous weights only: what
    channels_last gains is lost. fp16 is refused (`check_fits`): the loss scale of DeepSpeed's torch_autocast stays
    where it is after an overflow, so that every later update is left out too.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, dtype: torch.dtype, stage: int
    ) -> None:
        os.environ["DS_ACCELERATOR"] = device.type  # or it takes any GPU that it finds
        os.environ["LOCAL_RANK"] = str(device.index or 0)  # which one
        import deepspeed
        from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

        self.get_full, self.set_full = safe_get_full_optimizer_state, safe_set_full_optimizer_state
        warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)  # torch's, of DeepSpeed's calls
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which it would compile at the start
        numbered = enumerate(p for group in optimizer.param_groups for p in group["params"])
        self.trained = {number: p for number, p in numbered if p.requires_grad}
        self.optimizer, self.skipped = optimizer, 0
        self.engine, zero, *_ = deepspeed.initialize(
            model=module.to(memory_format=torch.contiguous_format),
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # it only counts with these two:
                "gradient_accumulation_steps": 1,  # __call__ says where an update ends
                "gradient_clipping": 0.0,  # its default clips to a norm of 1
                "zero_optimization": {"stage": stage},
                "torch_autocast": {
                    "enabled": dtype != torch.float32,
                    "dtype": str(dtype).removeprefix("torch."),
                    "lower_precision_safe_modules": [],  # gradients travel in fp32
                },
            },
            dist_init_required=False,
        )
        self.zero = zero if stage else None

    def __call__(self, *inputs: Any, last: bool = True) -> Any:
        self.engine.set_gradient_accumulation_boundary(last)
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> bool:
        """ZeRO leaves out an update whose gradients are not finite itself; its workers agree on that by the norm."""
        if self.zero is None and not finite_gradients(self.optimizer):
            self.optimizer.zero_grad(set_to_none=True)
            moved = False
        else:
            self.engine.step()
            moved = bool(self.engine.was_step_applied())
        self.skipped += not moved
        return moved

    def state(self) -> dict[str, Tensor]:
        if self.zero is None:
            return flat_state(self.optimizer)
        (shard,) = self.optimizer.state.values() or ({},)  # all parameters in one; nothing before the first update
        return {
            f"{number}.{name}": copied(value if name == "step" else self.get_full(parameter, name))
            for number, parameter in self.trained.items()
            for name, value in shard.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        if self.zero is None:
            load_state(self.optimizer, state)
            return
        self.zero.refresh_fp32_params()  # each worker's shard of the weights, which were loaded into the module
        (weights,) = self.zero.single_partition_of_fp32_groups
        shard = self.optimizer.state[weights]
        for _, name, value in entries(state):
            if name == "step":
                shard["step"] = value.to(weights.device)
            elif name not in shard:
                shard[name] = torch.zeros_like(weights)
        self.zero._lazy_init_hp_params_optimizer_state()  # what its first update would do: set_full looks there
        for number, name, value in entries(state):
            if name != "step":
                self.set_full(self.trained[number], value.to(weights.device), name)
