"""Weights & Biases: online where the user is logged in and the server answers, otherwise offline in the run folder."""

import logging
import netrc
import os
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger

from dinotrack.errors import DinotrackError

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)
MODES = {"dryrun": "offline", "run": "online"} | {name: name for name in ("auto", "online", "offline", "disabled")}
"""What `mode` and $WANDB_MODE may say, with W&B's older names."""
LONGEST = 128
"""Characters of a name or a group."""


def open_wandb(
    save_dir: str,
    *,
    project: str | None = None,
    name: str | None = None,
    group: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    timeout: float = 10.0,
    upload_timeout: float = 300.0,
    log_model: bool | Literal["all"] = False,
    resume: bool = False,
    **options: Any,
) -> WandbLogger | None:
    """A run of W&B in `save_dir`, and a line that says where it is; None when it is disabled. Never asks for a key.

    `mode="auto"` does what $WANDB_MODE says, else it is online for who is logged in. A server that does not answer within
    `timeout` seconds leaves the run offline; at its end the upload may take `upload_timeout`. Without a `name` it is the
    folder's, in a sweep the overrides', and a sweep is a `group`. `resume` goes on with the run that lies in the folder. More
    options are those of `wandb.init`.

    Raises:
        DinotrackError: for a mode that there is not.
    """
    asked = check_mode(os.environ.get("WANDB_MODE") or "auto" if mode == "auto" else mode)
    if MODES[asked] == "disabled":
        log.info("W&B: disabled")
        return None
    import wandb  # takes a second

    names = named(save_dir, name, group) | {"project": project or os.environ.get("WANDB_PROJECT") or "dinotrack"}
    options = {"dir": save_dir, "id": earlier_run(save_dir) if resume else None, "resume": "allow", **names, **options}
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    server = wandb.setup().settings.base_url
    why = reason_for_offline(MODES[asked], server, timeout)
    run = None
    if not why:
        try:
            run = started("online", timeout, upload_timeout, options)
        except Exception as error:  # a key that is refused, a server that stops answering
            why = f"{server}: {' '.join(str(error).split())[:120]}"
    run = run or started("offline", timeout, upload_timeout, options)
    tell_where(run, why, expected=MODES[asked] == "offline" or (why == NOT_LOGGED_IN and asked == "auto"))
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=save_dir, project=names["project"], log_model=log_model)


def started(mode: str, timeout: float, upload_timeout: float, options: dict[str, Any]) -> "Run":
    """A run that keeps its hands off the terminal, and gives up on a network that went away."""
    import wandb

    wanted: dict[str, Any] = {"init_timeout": timeout, "finish_timeout": upload_timeout, "silent": True}
    wanted |= {
        "login_timeout": 1.0,
        "console": "off",
    }  # no waiting for answers; and a wrapped terminal tears progress bars
    known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    return wandb.init(mode=mode, reinit="create_new", settings=wandb.Settings(**known), **options)  # type: ignore[arg-type]


NOT_LOGGED_IN = "not logged in"
CLOUD = ("wandb.ai", "coreweave.com")
"""Hosts of W&B's own servers, for all of which a key of api.wandb.ai counts."""


def check_mode(mode: str) -> str:
    """A mode that there is.

    Raises:
        DinotrackError: for another.
    """
    if mode not in MODES:
        raise DinotrackError(f"W&B mode {mode!r} is none of {', '.join(MODES)}")
    return mode


def reason_for_offline(asked: str, server: str, timeout: float) -> str:
    """Why a run is offline, or nothing."""
    if asked == "offline":
        return "as asked"
    if not logged_in(server):
        return NOT_LOGGED_IN
    return "" if answers(server, timeout) else f"{server} cannot be reached"


def logged_in(server: str) -> bool:
    """Whether a key is where W&B looks for it: in the environment, its settings, or the netrc file that `wandb login` writes."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.setup().settings.api_key:
        return True
    named_file, host = os.environ.get("NETRC"), urlparse(server).netloc
    files = [Path(named_file)] if named_file else [Path.home() / name for name in (".netrc", "_netrc")]
    hosts = [host, "api.wandb.ai"] if host.endswith(CLOUD) else [host]
    try:
        return any(netrc.netrc(file).authenticators(name) for file in files if file.exists() for name in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def answers(server: str, timeout: float) -> bool:
    """Whether a server says anything at all within so many seconds; names that are looked up in vain count as well."""
    heard = threading.Event()

    def ask() -> None:
        try:
            urlopen(server, timeout=timeout).close()
            heard.set()
        except HTTPError:
            heard.set()
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # its certificate is W&B's to judge
                heard.set()
        except OSError:
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return heard.is_set()


def tell_where(run: "Run", why: str, *, expected: bool) -> None:
    """The line that says where a run is; a warning where the user had reason to expect another place."""
    place = os.path.relpath(run.settings.sync_dir)
    if why:
        line = f"W&B: offline ({why}) in {place}; upload it with: wandb sync {place}"
    else:
        line = f"W&B: online at {run.url}; its files are in {place}"
    log.log(logging.INFO if expected or not why else logging.WARNING, "%s", line)


UNNAMED = ("cache_dir=", "logger", "swept=", "layers=", "facets=", "threads=", "benchmark.of=")
"""Overrides of a job that say nothing of what is tried."""


def named(save_dir: str, name: str | None, group: str | None) -> dict[str, str | None]:
    """Name and group of a run: in a sweep its overrides and the sweep's folder."""
    folder = Path(save_dir).absolute().name
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        hydra = HydraConfig.get()
        words = [word for word in hydra.overrides.task if not word.lstrip("+").startswith(UNNAMED)]
        folder, group = " ".join(words) or folder, group or str(hydra.sweep.dir)
    return {"name": (name or folder)[:LONGEST], "group": group[-LONGEST:] if group else None}


def earlier_run(save_dir: str) -> str | None:
    """The id of the run that lies in the folder already: a fit that goes on is logged to the same one."""
    latest = Path(save_dir) / "wandb" / "latest-run"
    return latest.resolve().name.rsplit("-", 1)[-1] if latest.exists() else None
