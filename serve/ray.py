"""The app as a deployment of Ray Serve: replicas of it on a cluster's machines, more of them while more is asked for.

    serve run actvar.serve.ray:app                       # settings from the environment, as ACTVAR_SERVE_MAX_REPLICAS
    serve run actvar.serve.ray:app model=/models/d20     # or here, or as `args` in Serve's configuration file

Each replica is a process with a pipeline, and with the queue and the batches that `actvar-trt serve` has. A picture
does not depend on the replica that draws it.
"""

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from ray import serve
from ray.serve import Application

from actvar.bundle.contract import Precision
from actvar.errors import EngineError
from actvar.export.front_door import AnyBackend, Pipeline
from actvar.runtime.backends.protocol import Device
from actvar.serve.app import GRACE_SECONDS, create_app
from actvar.telemetry import OFF, switch_off

PREFIX = "ACTVAR_SERVE_"
"""Before a setting's name, in capitals, is the variable that holds it."""
KEY_VARIABLE = "ACTVAR_API_KEY"

_SHORTEST_KEY = 8
_SPARE_REQUESTS = 16  # beside those for pictures: health, metrics, and what is to be refused


class Settings(BaseModel):
    """What is served, and by how many. What is not given is read from the environment."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("actvar-mini", description="As `--model`: whatever it names, every machine must see it.")
    vqvae: str | None = Field(None, description="The VQVAE of a checkpoint that holds none.")
    precision: Precision | None = None
    backend: AnyBackend = "onnxruntime"
    device: Device | None = None
    threads: int = Field(1, ge=1, description="Of a replica, which Ray counts as CPUs.")
    gpus: float | None = Field(None, gt=0, description="Of a replica on a GPU: one, or a share of one.")
    max_batch: int = Field(8, ge=1)
    max_wait_ms: float = Field(5.0, ge=0)
    max_queue: int = Field(64, ge=1, description="Pictures that may wait at a replica; more are answered with 429.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    requests_per_replica: float | None = Field(
        None, gt=0, description="Requests under way at which another replica is started; two batches if left out."
    )
    grace: float = Field(GRACE_SECONDS, ge=1)
    api_key: SecretStr | None = Field(None, description=f"That every request must name; also as {KEY_VARIABLE}.")

    @model_validator(mode="before")
    @classmethod
    def _with_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        there = {
            name: os.environ[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in os.environ
        }
        if key := os.environ.get(KEY_VARIABLE):
            there["api_key"] = key
        return {**there, **given}

    @model_validator(mode="after")
    def _fit(self) -> "Settings":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below the {self.min_replicas} of min_replicas")
        if self.gpus and not self.is_on_gpu:
            raise ValueError("gpus is of replicas that draw on one: set device to cuda, or backend to tensorrt")
        key = self.api_key.get_secret_value() if self.api_key else None
        if key is not None and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable()):
            raise ValueError(f"a key must have {_SHORTEST_KEY} printable ASCII signs or more")
        return self

    @property
    def is_on_gpu(self) -> bool:
        """Whether replicas draw on one."""
        return self.device == "cuda" or self.backend == "tensorrt"


def app(settings: Settings) -> Application:
    """The deployment, as Ray Serve asks for it."""

    def build() -> FastAPI:
        return replica(settings)

    @serve.ingress(build)
    class Pictures:
        """A replica."""

        def check_health(self) -> None:
            """Ray Serve asks; a replica whose engine stays broken is replaced."""
            if self.app.state.drawer.has_failed:  # type: ignore[attr-defined]
                raise EngineError("The engine has failed.")

    switch_off()
    scaled: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        scaled = {
            "autoscaling_config": {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.requests_per_replica or 2 * settings.max_batch,
            }
        }
    deploy = serve.deployment(
        name="pictures",
        max_ongoing_requests=settings.max_queue + settings.max_batch + _SPARE_REQUESTS,
        graceful_shutdown_timeout_s=settings.grace,
        ray_actor_options={
            "num_cpus": settings.threads,
            "num_gpus": (settings.gpus or 1) if settings.is_on_gpu else 0,
            "runtime_env": {"env_vars": {name: os.environ[name] for name in OFF}},
        },
        **scaled,
    )
    return deploy(Pictures).bind()


def replica(settings: Settings) -> FastAPI:
    """The app of one replica, with a pipeline of its own.

    Raises:
        ActVARError: the model cannot be used here.
    """
    pipeline = Pipeline.from_pretrained(
        settings.model,
        vqvae=settings.vqvae,
        precision=settings.precision,
        backend=settings.backend,
        device=settings.device,
        batch_size=settings.max_batch,
        threads=settings.threads,
        progress_bar=False,
    )
    return create_app(
        pipeline,
        max_batch=settings.max_batch,
        max_wait_ms=settings.max_wait_ms,
        max_queue=settings.max_queue,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        grace_seconds=settings.grace,
    )
