"""The server of `trl-sdpo serve`: uvicorn with one process, or with several of which each has the model."""

import json
import os
from typing import Any

from fastapi import FastAPI


# What the processes of a server are told, since uvicorn starts them from the name of a function
SETTINGS = "TRL_SDPO_SERVE"
GRACE = 30  # seconds that a stop waits for answers on their way


def serve(loading: dict[str, Any], limits: dict[str, Any], host: str, port: int, workers: int = 1) -> None:
    """
    Serve a recommender until a signal ends it. What is on its way is answered before.

    Args:
        loading (`dict`):
            Arguments of [`Recommender.from_pretrained`].
        limits (`dict`):
            Arguments of [`~serving.api.make_app`].
        host (`str`), port (`int`):
            Where to listen.
        workers (`int`, *optional*, defaults to `1`):
            Processes. One that dies is started again.
    """
    import uvicorn

    options = {"host": host, "port": port, "log_level": "warning", "timeout_graceful_shutdown": GRACE}
    os.environ[SETTINGS] = json.dumps({"loading": loading, "limits": limits})
    if workers == 1:
        uvicorn.run(make_from_settings(), **options)
    else:
        uvicorn.run(f"{__name__}:make_from_settings", factory=True, workers=workers, **options)


def make_from_settings() -> FastAPI:
    """The application of this process."""
    from ..recommender.recommender import Recommender
    from .api import make_app

    settings = json.loads(os.environ[SETTINGS])
    return make_app(Recommender.from_pretrained(**settings["loading"]), **settings["limits"])
