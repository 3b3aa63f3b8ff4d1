"""What runs in each replica: the ASGI application over the ledger, the registry and the feature store."""

from __future__ import annotations

from factory.errors import StorageFault
from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import Variant
from factory.variants.bundle import Bundle, folder_size_mb
from factory.variants.registry import Registry
from serve.app import Predictor
from serve.core import Core
from serve.limits import Limits
from serve.loaded import Loaded
from serve.online import FeatureReaders
from serve.recording import Recorder


def build(settings: Settings) -> Predictor:
    """Return the predictor's ASGI application.

    Raises:
        StorageFault: the ledger cannot be used.
    """
    registry = Registry(settings)

    def load(variant: Variant) -> Loaded:
        folder = registry.local_bundle(variant.name, variant.version)
        try:
            bundle = Bundle.load(folder, digest=variant.bundle_digest)
            return Loaded.warm(variant, bundle, size_mb=folder_size_mb(folder))
        except OSError as error:
            raise StorageFault(
                f"The files of {variant.name}/{variant.version} cannot be read: {error.strerror or error}.",
                hint="Look at the artifact storage: is it mounted, and may this user read it?",
            ) from error

    core = Core(
        Ledger.open(settings.ledger),
        load=load,
        features=FeatureReaders(settings),
        limits=Limits.of(settings),
        recorder=Recorder.of(settings),
        # Importing MLflow takes seconds, which no caller should wait for.
        warm_up=registry.warm_up,
    )
    return Predictor(core)


class PredictorDeployment:
    """The class that Ray Serve makes in each replica; ``serve.ingress`` asks it for the application."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Predictor:
        """Return the application of this replica."""
        return build(self._settings)
