"""A model opened: its network, its microscope and its card, and what it can be asked for."""

from pathlib import Path
from typing import Any

from pellucid.data.model_files import read_model
from pellucid.errors import InputError
from pellucid.networks.model import Architecture, RestorationNet
from pellucid.networks.restorer import Network
from pellucid.networks.views import Optics
from pellucid.stages.networks.optics import optics_of
from pellucid.stages.networks.parameters import RestoreParameters


def load_network(folder: Path) -> tuple[Network, Optics, dict[str, Any]]:
    """The network of a model, the microscope it is for, and its card; InputError where they do not
    fit."""
    tensors, card = read_model(folder)
    try:
        nets = []
        for i, values in enumerate(card["networks"]):
            net = RestorationNet(Architecture(**values))
            mine = f"net{i}."
            net.load_state_dict(
                {k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)}
            )
            nets.append(net.eval())
        return Network(nets[0], tuple(nets[1:])), optics_of(tensors, card), card
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder.name}: card and weights do not fit. Train the model anew.") from error


def check_asked(card: dict[str, Any], asked: RestoreParameters) -> None:
    """InputError where a model is of another modality than asked for, or lacks what is asked of it."""
    if asked.modality not in (None, card["modality"]):
        raise InputError(
            f"{asked.model.name}: a model for {card['modality']}, asked for {asked.modality}. Choose a "
            "model of that modality."
        )
    check_card(
        card, asked.model.name, fall_back=asked.fall_back, verdict=asked.verdict is not None
    )


def check_card(card: dict[str, Any], name: str, *, fall_back: bool, verdict: bool) -> None:
    """InputError where a model does not hold what is asked of it."""
    if fall_back and card.get("share") is None:
        raise InputError(
            f"{name}: made before models knew when to fall back. Train it anew, or leave --fall-back out."
        )
    if verdict and card.get("trust") is None:
        raise InputError(
            f"{name}: holds no verdict, as nothing was wrong in its calibration. Train with more "
            "calibration recordings, or leave --verdict out."
        )
