"""What an application on Ray is made of: the `args` of a Serve config file."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DeploymentOptions(BaseModel):
    """Replicas that all serve the same models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="models", min_length=1, description="Of the deployment, in Ray's own views.")
    models: tuple[str, ...] = Field(default=(), description="Names or aliases of the registry; none: all of it.")
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0, description="Of each replica.")
    num_gpus: float = Field(default=0.0, ge=0, description="Of each replica; half a GPU is .5.")
    resources: dict[str, float] = Field(default_factory=dict, description="Custom resources of each replica.")
    wait_s: float = Field(default=1.0, gt=0, description="Add replicas when more seconds of work wait for each.")
    busy: float = Field(default=0.7, gt=0, le=1, description="Add replicas when engines compute more of the time.")
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _has_a_range(self) -> "DeploymentOptions":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}")
        return self


class FrontOptions(BaseModel):
    """The deployment that takes HTTP requests. On the head node, it outlives every other node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0)
    on_head: bool = Field(default=True, description="Keep it on the head node.")


class Options(BaseModel):
    """`settings` win over the environment's RERANKD_ variables, by the names in docs/configuration.md in lower case and
    without the prefix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    deployments: tuple[DeploymentOptions, ...] = Field(default=(DeploymentOptions(),), min_length=1)
    front: FrontOptions = FrontOptions()

    @model_validator(mode="after")
    def _names_differ(self) -> "Options":
        names = [deployment.name for deployment in self.deployments]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"deployments have the same name, {', '.join(doubles)}; rename them")
        return self
