"""The one Celery task: look for claimable jobs. The message carries nothing."""

from app.queue import LOOK
from worker.celery_app import celery_app, supervisors


@celery_app.task(name=LOOK)
def look() -> None:
    supervisors[0].look()
