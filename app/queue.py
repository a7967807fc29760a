"""The bell: a Celery message without content that says "there is work". Rows are the truth, so a lost, doubled or
late message is harmless; workers also look unrung and the sweeper rings again."""

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from app.settings import Settings

LOOK = "lethe.look"
QUEUE = "gpu"

log = structlog.get_logger()


def make_celery(settings: Settings) -> Celery:
    """The Celery application of servers and workers alike."""
    celery = Celery("lethe", broker=settings.broker)
    celery.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        broker_transport_options=_transport_options(settings),
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a broker may be away for hours; jobs wait in their rows
    )
    return celery


def ring(celery: Celery) -> bool:
    """Ring once, after a commit. False when the broker is away: the job stays queued and is found anyway."""
    try:
        celery.send_task(LOOK, queue=QUEUE, ignore_result=True, retry=False)
    except (OperationalError, OSError) as error:
        log.warning("bell.silent", error=type(error).__name__)
        return False
    return True


def _transport_options(settings: Settings) -> dict[str, object]:
    if settings.broker.startswith("filesystem://"):
        bell = settings.data.absolute() / "bell"
        for name in ("messages", "control"):
            (bell / name).mkdir(parents=True, exist_ok=True)
        folder = str(bell / "messages")
        control = str(bell / "control")
        return {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control, "polling_interval": 0.1}
    if settings.broker.startswith("redis"):
        return {"socket_connect_timeout": 2, "socket_keepalive": True}
    return {}
