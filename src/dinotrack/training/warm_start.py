"""`init_from=`: a fit that starts from the networks of an earlier one, of this video, another, or many."""

from pathlib import Path

from dinotrack.chrono_weights import part
from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import read_checkpoint
from dinotrack.training.modules import DinoTrackerModule


def start_from(path: str | Path, module: DinoTrackerModule) -> None:
    """Give refinement and head the weights of a checkpoint, whatever video and backbone it was fitted on.

    Raises:
        DinotrackError: for an unreadable checkpoint, or one whose networks are of another make.
    """
    content = read_checkpoint(path)
    about = content["dinotrack"]
    for name, network in (("delta", module.delta), ("head", module.head)):
        try:
            network.load_state_dict(part(content["state_dict"], f"{name}."))
        except RuntimeError as error:
            raise DinotrackError(
                f"init_from={path}: its {name} {about.get(name)} does not fit {network.settings}; "
                f"set method.{name} and the backbone's channels to the checkpoint's"
            ) from error
