"""What a server process holds: its settings, the database, the blobs, the keys, the bell, the decoders and room for bodies."""

from dataclasses import dataclass

from celery import Celery

from app.bodies import Bodies
from app.decoding import Decoders
from app.privacy.sealing import Keyring
from app.queue import make_celery
from app.records.session import Store
from app.settings import Settings
from app.storage import LocalBlobs


@dataclass(frozen=True)
class Deployment:
    settings: Settings
    store: Store
    blobs: LocalBlobs
    keyring: Keyring
    celery: Celery
    decoders: Decoders
    bodies: Bodies

    @property
    def pepper(self) -> bytes:
        """The key of the API keys' digests."""
        return self.keyring.named_key("hmac")


def deploy(settings: Settings) -> Deployment:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Deployment(
        settings=settings,
        store=Store(settings.database),
        blobs=LocalBlobs(settings.blob_root),
        keyring=Keyring(settings.key_root, settings.master_key_file),
        celery=make_celery(settings),
        decoders=Decoders(settings),
        bodies=Bodies(settings),
    )
