"""The state that a run begins with."""

import torch

from model.ema import EMA, PowerAverages
from model.networks import build_network
from utils.devices import Precision
from utils.errors import UserError
from utils.ranks import Ranks
from utils.training.optimizer import build_optimizer
from utils.training.run_options import RunOptions
from utils.training.state import TrainState


def new_state(
    kind: str, config: dict, options: RunOptions, precision: Precision, ranks: Ranks
) -> TrainState:
    """The network of config["network"], its EMA and optimizer, untrained.

    `kind` is that of the checkpoint, `config` its config, but for "training" and "length". Raises
    UserError for a network that cannot be built.
    """
    torch.manual_seed(options.seed)
    try:
        network = build_network(config["network"])
    except ValueError as error:
        raise UserError(str(error)) from None
    network = precision.place(network)
    global_batch = options.global_batch(ranks.world_size)
    return TrainState(
        network=network,
        ema=EMA(network, options.ema_decay, options.ema_length),
        optimizer=build_optimizer(options.optim, network, options.lr, options.weight_decay, ranks),
        scaler=precision.scaler(),
        averages=PowerAverages(network) if options.ema_snapshots > 0 else None,
        seed=options.seed,
        kind=kind,
        config={
            **config,
            "network": network.config,
            "training": {**options.decisions, "global_batch": global_batch},
        },
        args={**options.record, "global_batch": global_batch},
        versions={
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": precision.device.type,
            "batch_size": options.batch_size,
            "grad_accum": options.grad_accum,
            "compile": options.compile,
        },
    )
