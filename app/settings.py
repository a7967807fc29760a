"""The environment, read once: every `LETHE_*` variable, its default and its meaning.

With nothing set this is the embedded deployment in the folder `.lethe`. A production host sets
`LETHE_DATABASE_URL` and `LETHE_BROKER_URL`. docs/operators.md lists the same table; a test compares them.
"""

from functools import lru_cache
from pathlib import Path

from limits import parse
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="LETHE_", frozen=True, extra="ignore")

    data: Path = Field(Path(".lethe"), description="Folder for everything Lethe keeps.")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data folder.")
    broker_url: str = Field("", description="Celery broker URL; empty: filesystem:// in the data folder.")
    keys: Path | None = Field(None, description="Folder of the master and data keys; empty: keys/ in the data folder.")
    master_key_file: Path | None = Field(
        None, description="File of the master key, where it lies outside the key folder; empty: master.key in it."
    )
    fingerprint_key_days: float = Field(
        365.0,
        gt=0,
        description="Days after which the log and `lethe keyring status` ask for a new fingerprint key, and a new key of duplicates.",
    )
    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(8765, ge=0, le=65535, description="Port that the server listens on.")
    model_roots: str = Field("", description="Folders, separated by ':', from which models may be registered by path.")
    device: str = Field("auto", description="Where runners compute: auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads of a runner; 0 leaves torch's own choice.")
    inception: Path | None = Field(
        None, description="Folder with FID's Inception v3 as model.safetensors; empty: no `fid_inception`."
    )
    lpips: Path | None = Field(
        None, description="Folder with LPIPS on AlexNet as model.safetensors; empty: no `integrity_lpips`."
    )
    lease_seconds: float = Field(
        30.0, gt=0, description="How long a worker may be silent before its job is taken back."
    )
    look_seconds: float = Field(1.0, gt=0, description="How often an idle worker looks for work unrung.")
    sweep_seconds: float = Field(5.0, gt=0, description="How often the sweeper runs.")
    grace_seconds: float = Field(
        10.0, ge=0, description="How long a cancelled job may wind down before TERM, and again before KILL."
    )
    resume_seconds: float = Field(60.0, ge=0, description="How often a running job saves sealed resume state.")
    runner_memory_mb: int = Field(
        0, ge=0, description="Resident memory above which a runner is replaced after its job; 0: never."
    )
    max_upload_bytes: int = Field(8 << 30, gt=0, description="Largest upload of a dataset or a model archive.")
    max_forget_bytes: int = Field(
        256 << 20, gt=0, description="Largest upload of role forget (held in memory, never on disk)."
    )
    large_bodies: int = Field(
        8,
        gt=0,
        description="Most large bodies that are held in memory at a time: uploads of role forget, and JSON of more than 1 MiB; "
        "further ones are answered 503.",
    )
    body_seconds: float = Field(
        300.0,
        gt=0,
        description="How long a body that is held in memory may take to come: an upload of role forget, or JSON.",
    )
    max_entries: int = Field(200_000, gt=0, description="Most entries in an archive.")
    max_pixels: int = Field(50_000_000, gt=0, description="Most pixels in one image.")
    decoders: int = Field(4, gt=0, description="Most uploads that are decoded at a time; more wait.")
    decoder_memory_mb: int = Field(
        1536, ge=256, description="Address space of the process that decodes one upload; allow 30 bytes a pixel."
    )
    decoder_seconds: float = Field(
        30.0, gt=0, description="How long decoding may take for an image, and in all for each 4 MiB of an archive."
    )
    deadline_days: int = Field(
        30, gt=0, description="Days after which a request of the regime `other` is due when it names no date."
    )
    unadopted_hours: float = Field(
        24.0, gt=0, description="Hours after which a sealed forget set that no request adopted is purged."
    )
    failed_retention_days: float = Field(
        30.0,
        ge=0,
        description="Days for which the forget set of a request that failed or missed its thresholds is kept for a retry.",
    )
    pack_grace_hours: float = Field(
        24.0, gt=0, description="Hours after which an upload whose intent is dead is deleted."
    )

    rate_limit: str = Field(
        "3000/minute", description="Calls that a key may make, such as 100/second or 5000/hour; empty: any number."
    )
    rate_limit_address: str = Field(
        "300/minute", description="Calls that an address may make without a valid key; empty: any number."
    )
    https: bool = Field(
        False, description="Whether clients come by HTTPS alone; then answers say so (Strict-Transport-Security)."
    )

    @field_validator("rate_limit", "rate_limit_address")
    @classmethod
    def rate(cls, limit: str) -> str:
        if limit:
            parse(limit)
        return limit

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{(self.data / 'lethe.db').absolute()}"

    @property
    def broker(self) -> str:
        return self.broker_url or "filesystem://localhost//"

    @property
    def blob_root(self) -> Path:
        return self.data.absolute() / "blobs"

    @property
    def key_root(self) -> Path:
        return (self.keys or self.data / "keys").absolute()

    @property
    def scratch(self) -> Path:
        return self.data.absolute() / "scratch"

    @property
    def allowed_roots(self) -> list[Path]:
        return [Path(root).resolve() for root in self.model_roots.split(":") if root]


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings. Read once; a changed environment needs a new process."""
    return Settings()
