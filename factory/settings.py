"""One frozen Settings, read from ``FACTORY_*`` variables and a ``.env`` file.

Where the state of an embedded factory lies is decided here and nowhere else:
every path below FACTORY_HOME is a property of :class:`Settings`.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from factory.errors import Detail, InvalidRequest, StorageFault

_PARTS = "portfolio|race|bagging|ensemble|search|slower|transfer"


class Settings(BaseSettings):
    """Settings of one process; each field is the variable ``FACTORY_<FIELD>``."""

    model_config = SettingsConfigDict(
        env_prefix="FACTORY_", env_file=".env", extra="ignore", frozen=True, validate_default=True
    )

    home: Path = Field(Path(".factory"), description="Folder that holds all state of the embedded default.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL of the ledger; default: SQLite in the home.")
    recipes: Path | None = Field(None, description="Folder of recipes; default: the recipes shipped with the factory.")
    feature_repo: Path | None = Field(None, description="Feast repository; default: the shipped example.")
    cpus: int | None = Field(None, ge=1, description="CPUs a local Ray may use; default: all that the process may.")
    memory_gb: float | None = Field(None, gt=0, description="Most memory of a request in GB; default: its budget's.")
    max_rows: int = Field(
        20_000_000, ge=1, description="Largest dataset that is read, in rows; a larger one is refused."
    )
    max_request_rows: int = Field(10_000, ge=1, description="Most rows that one prediction request may hold.")
    max_request_mb: float = Field(16.0, gt=0, description="Largest body of one prediction request in MB.")
    engine_without: str | None = Field(
        None,
        pattern=rf"^({_PARTS})(,({_PARTS}))*$",
        description="Parts of the engine to leave out, for measuring what they bring: portfolio, race, bagging, "
        "ensemble, search, slower, transfer; separated by commas.",
    )
    attempt: str | None = Field(
        None, description="Job of the controller that this process is: its faults are then tried again by it."
    )
    granted_cpus: int | None = Field(
        None, ge=1, description="CPUs of a shared cluster that this request was admitted with; default: all of them."
    )
    host: str = Field("127.0.0.1", description="Address that the portal of `factory up` listens on.")
    portal_port: int = Field(8080, ge=1, le=65535, description="Port of the portal and its JSON API.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the MLflow server of `factory up`.")
    ray_port: int = Field(6379, ge=1, le=65535, description="Port of the Ray head of `factory up`.")
    dashboard_port: int = Field(8265, ge=1, le=65535, description="Port of Ray's dashboard and Jobs API.")
    controller_interval_s: float = Field(1.0, gt=0, le=60, description="Seconds between two looks of the controller.")
    cpu_hour: float = Field(0.05, ge=0, description="Price of a CPU for an hour, as quotes and usage tell it.")
    gpu_hour: float = Field(2.5, ge=0, description="Price of a GPU for an hour.")
    gb_hour: float = Field(0.005, ge=0, description="Price of a GB of memory for an hour.")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="Of the prices: a code of ISO 4217.")
    max_upload_mb: float = Field(2048.0, gt=0, description="Largest upload of a dataset in MB.")
    max_body_kb: int = Field(1024, ge=1, description="Largest JSON or YAML body of the portal's API in KB.")
    dataset_folders: str | None = Field(
        None,
        description="Folders, and beginnings of URLs, in which requests over HTTP may name data, separated by commas; "
        "default: none, only uploads.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Addresses or networks of proxies whose X-Forwarded-For is believed, separated by commas; "
        "default: none.",
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s@]+$",
        description="Address of the portal as browsers see it, as https://factory.example.com; default: the loopback "
        "address and the portal's port.",
    )
    session_hours: float = Field(
        12.0, gt=0, le=24 * 30, description="Hours after which whoever signed in has to again."
    )
    oidc_issuer: str | None = Field(
        None,
        pattern=r"^https?://[^?#\s@]+$",
        description="OpenID Connect provider that people sign in with, as its discovery document names itself; "
        "default: none, tokens only.",
    )
    oidc_client_id: str | None = Field(None, min_length=1, description="Id of the portal at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        None, exclude=True, description="Its secret; default: none, a public client. Only the portal gets it."
    )
    oidc_client_secret_file: Path | None = Field(None, description="File with that secret, in place of the variable.")
    oidc_scopes: str = Field(
        "openid email profile", pattern=r"^openid( \S+)*$", description="What the provider is asked for."
    )
    oidc_groups_claim: str = Field("groups", min_length=1, description="Claim of the ID token with a person's groups.")
    oidc_teams: str | None = Field(
        None,
        description="What groups may do, as data=growth:read+submit,platform=*:admin, where * is all teams; "
        "default: people are only in the teams that they were added to.",
    )
    requests_a_minute: int = Field(600, ge=1, description="Calls of the API that a token may make in a minute.")
    predictions_a_minute: int = Field(
        60_000, ge=1, description="Calls that a token may make of one replica of the predictor in a minute."
    )
    prediction_log_percent: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Percent of the calls whose rows and predictions are written down; at 0 no inputs are.",
    )
    working_files_days: int = Field(
        14, ge=1, le=36_500, description="Days after its end for which the controller keeps a request's working files."
    )
    job_logs_days: int = Field(
        90,
        ge=1,
        le=36_500,
        description="Days after its end for which the controller keeps the logs of a request's jobs.",
    )
    prediction_log_days: int = Field(30, ge=1, description="Days for which written predictions and outcomes are kept.")
    topics_url: SecretStr | None = Field(
        None,
        exclude=True,
        description="Broker of `factory stream`, as redis://, nats://, amqp:// or kafka:// with user, password and "
        "port; default: none.",
    )
    serve_port: int = Field(8000, ge=0, le=65535, description="Port of the predictor; 0 takes a free one.")
    serve_grpc_port: int | None = Field(
        None, ge=0, le=65535, description="Its port for gRPC; default: the one after FACTORY_SERVE_PORT."
    )
    serve_tls_cert: Path | None = Field(
        None,
        description="PEM file with the predictor's certificate and its chain; default: none, no calls over TLS.",
    )
    serve_tls_key: Path | None = Field(
        None, description="PEM file with its private key, without a password; default: in the same file."
    )
    serve_tls_client_ca: Path | None = Field(
        None, description="PEM file with authorities: callers over TLS need a certificate of one; default: none."
    )
    serve_tls_port: int = Field(
        8443, ge=0, le=65535, description="Port over TLS of all addresses, for HTTP and gRPC; 0 takes a free one."
    )
    serve_replicas: int = Field(1, ge=1, description="Replicas of the predictor.")
    serve_access_log: bool = Field(False, description="Whether the predictor writes a line for each call.")
    serve_max_ongoing: int = Field(
        32, ge=1, description="Requests that a replica answers at a time; more wait a moment, then 503."
    )
    serve_deadline_s: float = Field(30.0, gt=0, description="Seconds within which a prediction request is answered.")
    serve_cache_mb: float = Field(2048.0, gt=0, description="MB of variants that one replica keeps in memory.")
    serve_pinned: str | None = Field(
        None,
        description="Variants whose champions stay in a replica's memory while others can go: patterns as growth.*, "
        "separated by commas; default: none.",
    )

    @property
    def root(self) -> Path:
        """The home folder as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{self.root / 'ledger.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking and registry URI; ``MLFLOW_TRACKING_URI`` wins."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def dashboard(self) -> str:
        """URL of Ray's dashboard and Jobs API, which `factory up` keeps on the loopback address."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def public(self) -> str:
        """Address of the portal as browsers see it."""
        return self.public_url or f"http://127.0.0.1:{self.portal_port}"

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artifacts for the embedded default."""
        return self.root / "artifacts"

    @property
    def uploads(self) -> Path:
        """Folder of uploaded datasets, one file per digest."""
        return self.root / "uploads"

    @property
    def predictions(self) -> Path:
        """Folder of what the predictor has written down: predictions and outcomes, by variant and day."""
        return self.root / "served"

    @property
    def feature_store(self) -> Path:
        """Folder of the embedded feature store: registry, online store, offline data."""
        return self.root / "features"

    @property
    def recipes_folder(self) -> Path:
        """Folder that recipes are read from."""
        return (self.recipes or shipped("recipes")).resolve()

    @property
    def published_recipes(self) -> Path:
        """Folder of recipes that were published through the API; they hide those of the same name."""
        return self.root / "recipes"

    @property
    def feature_repo_folder(self) -> Path:
        """The Feast repository whose definitions are applied."""
        return (self.feature_repo or shipped("feature_repo")).resolve()

    def workspace(self, request_id: str) -> Path:
        """Folder of one request's working files (trials, out-of-fold predictions)."""
        return self.root / "requests" / request_id

    def prepare_home(self) -> Path:
        """Create the home folder and prove that it can be written.

        Raises:
            StorageFault: the folder cannot be created or written, or the disk is full.
        """
        probe = self.root / f".probe-{uuid4().hex[:8]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        except OSError as error:
            raise StorageFault(
                f"FACTORY_HOME {str(self.root)!r} cannot be written: {error.strerror or error}.",
                hint="Free some space or set FACTORY_HOME to a folder that this user may write.",
                details=[Detail("FACTORY_HOME", str(error))],
            ) from error
        return self.root


def shipped(name: str) -> Path:
    """Return a folder that comes with the project, from a checkout or an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here / "shipped" / name, here.parent / name):
        if folder.is_dir():
            return folder
    return here.parent / name


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        InvalidRequest: a variable has a value that is not allowed; all of them are named.
    """
    try:
        return Settings()
    except ValidationError as error:
        details = [
            Detail(f"FACTORY_{'_'.join(map(str, e['loc'])).upper()}", f"{e['msg']}; received {e['input']!r}.")
            for e in error.errors()
        ]
        raise InvalidRequest(
            "The settings are not valid: " + " ".join(f"{d.field}: {d.message}" for d in details),
            hint="Mend the environment variable or the .env file; docs/reference.md lists every setting.",
            details=details,
        ) from error
