"""Settings of the deployment: from the environment, weaker than what is given, and held to each other."""

import pytest

pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'actvar-trt[ray,serve]'", exc_type=ImportError)

from pydantic import ValidationError

from actvar.serve.ray import Settings, app


def test_settings_come_from_the_environment_and_what_is_given_wins(monkeypatch: pytest.MonkeyPatch):
    """As text, as variables and arguments of `serve run` are."""
    monkeypatch.setenv("ACTVAR_SERVE_MODEL", "var-mini")
    monkeypatch.setenv("ACTVAR_SERVE_MAX_BATCH", "4")
    monkeypatch.setenv("ACTVAR_API_KEY", "a key of mine")
    settings = Settings.model_validate({"model": "bundles/d16", "threads": "2"})
    assert (settings.model, settings.max_batch, settings.threads, settings.max_queue) == ("bundles/d16", 4, 2, 64)
    assert "a key of mine" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_batches": 4}, "max_batches"),
        ({"min_replicas": 3, "max_replicas": 2}, "below the 3 of min_replicas"),
        ({"gpus": 0.5}, "set device to cuda"),
        ({"api_key": "short"}, "8 printable ASCII signs"),
        ({"backend": "caffe"}, "backend"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(given)


def test_replicas_follow_the_load_between_two_numbers():
    """A replica with a whole queue is busy, so Ray is to add one long before that."""
    deployment = app(Settings(max_replicas=4, threads=3))._bound_deployment
    config = deployment._deployment_config
    assert config.autoscaling_config.max_replicas == 4 and config.autoscaling_config.target_ongoing_requests == 16
    assert config.max_ongoing_requests > 64 + 8 and deployment.ray_actor_options["num_cpus"] == 3
    fixed = app(Settings(min_replicas=2, max_replicas=2))._bound_deployment
    assert fixed.num_replicas == 2 and fixed._deployment_config.autoscaling_config is None
