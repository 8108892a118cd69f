"""The JupyterLab that `ess-widgets demo` starts: settings of this one server, not of the user's."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

__all__ = ["NoDelayConnection", "arguments", "environment", "serve"]

# Settings of JupyterLab: no question about news, which would cover a corner of the notebook.
CONFIG = Path(__file__).with_name("jupyter")


class NoDelayConnection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """Kernel websocket without Nagle's algorithm, which holds small messages back for about 40 ms."""

    def connect(self) -> Any:
        """Set TCP_NODELAY on the browser's socket, then connect as usual."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()


def arguments(directory: Path, *, port: int, browser: bool, token: str) -> list[str]:
    """Command line for JupyterLab on ``directory``."""
    options: dict[str, object] = {
        "ServerApp.root_dir": directory,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": browser,
        "ServerApp.kernel_websocket_connection_class": f"{__name__}.{NoDelayConnection.__name__}",
        "Application.log_level": "WARN",
        "IdentityProvider.token": token,
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # containers
        options["ServerApp.allow_root"] = True
    return [f"--{name}={value}" for name, value in options.items()]


def environment() -> dict[str, str]:
    """Environment variables that the server takes its settings from; what the user has set stays."""
    paths = [str(CONFIG), os.environ.get("JUPYTER_CONFIG_PATH")]
    return {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}


def serve(notebook: Path, *, port: int, browser: bool, token: str) -> None:
    """Run JupyterLab on ``notebook`` until Ctrl-C."""
    from jupyterlab.labapp import LabApp

    os.environ.update(environment())
    argv = arguments(notebook.parent, port=port, browser=browser, token=token)
    app = LabApp.initialize_server(argv=[*argv, f"--LabApp.default_url=/lab/tree/{notebook.name}"])
    url = f"http://localhost:{app.port}{app.base_url}lab/tree/{notebook.name}?token={token}"
    app.io_loop.add_callback(print, f"\nThe tour is open at\n\n    {url}\n\nCtrl-C ends it.", flush=True)

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C waits for nothing
        app.stop(from_signal=True)

    # The server's own handler asks back in a terminal, and without one leaves the kernels behind.
    signal.signal(signal.SIGINT, stop)
    app.start()
