"""Builds the application of Ray Serve from its options."""

from typing import Any

from ray.serve import Application, Deployment, deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from rerankd.config.named_models import served_registry
from rerankd.config.settings import read_settings
from rerankd.serving.ray.front import Front, owners
from rerankd.serving.ray.options import DeploymentOptions, FrontOptions, Options
from rerankd.serving.ray.replica import Replica
from rerankd.serving.ray.routing import AffineRouter

# Ray counts requests, and rerankd's admission their tokens: it rejects what would wait too long.
_MOST_REQUESTS = 1000


def app(options: Options) -> Application:
    """The application: a front, and a deployment for each group of models.

    Raises:
        ConfigError: the settings are unusable, or a deployment names an unknown model.
    """
    return build(options)


def build(options: Options, *, front: type[Front] = Front, replica: type[Replica] = Replica) -> Application:
    """The same of other classes, for tests.

    Raises:
        ConfigError: as above.
    """
    models = {deployment.name: deployment.models for deployment in options.deployments}
    owners(served_registry(read_settings(**options.settings)), models)
    handles = {deployment.name: _replicas(replica, deployment, options.settings) for deployment in options.deployments}
    deployed = _deployment(front).options(
        name="front",
        num_replicas=options.front.replicas,
        max_ongoing_requests=_MOST_REQUESTS,
        ray_actor_options=_resources_of_front(options.front),
    )
    built: Application = deployed.bind(options.settings, handles, models)
    return built


def _replicas(replica: type[Replica], options: DeploymentOptions, settings: dict[str, Any]) -> Application:
    replicas = _deployment(replica).options(
        name=options.name,
        max_ongoing_requests=_MOST_REQUESTS,
        ray_actor_options={
            "num_cpus": options.num_cpus,
            "num_gpus": options.num_gpus,
            "resources": options.resources,
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="rerankd.serving.ray.scaling:WaitingWork",
                policy_kwargs={"wait_s": options.wait_s, "busy": options.busy},
            ),
        ),
        request_router_config=RequestRouterConfig(request_router_class=AffineRouter),  # type: ignore[arg-type]
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=30.0,
    )
    built: Application = replicas.bind(settings, list(options.models))
    return built


def _resources_of_front(options: FrontOptions) -> dict[str, Any]:
    on_head = {"node:__internal_head__": 0.001} if options.on_head else {}
    return {"num_cpus": options.num_cpus, "resources": on_head}


def _deployment(body: type) -> Deployment:
    made: Deployment = deployment()(body)
    return made
