"""The Celery worker: `celery -A worker.celery_app worker`. Each setting has its reason beside it.

Celery only wakes the supervisor; no process of it imports torch. The pool child owns the supervisor, and through it
the runner; `draining` is set in the main process and read in the child.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from typing import Any

import structlog
from celery.platforms import SecurityWarning
from celery.signals import worker_init, worker_process_init, worker_process_shutdown, worker_ready, worker_shutting_down
from celery.worker import state

from app import logs
from app.queue import make_celery, ring
from app.records import job as jobs
from app.records.session import Store
from app.settings import settings
from worker.supervisor import Supervisor

PR_SET_PDEATHSIG = 1
logs.configure()
warnings.filterwarnings("ignore", category=SecurityWarning)  # about root and pickle: only JSON is accepted here
log = structlog.get_logger()
draining = multiprocessing.get_context("fork").Event()  # made before the pool forks, so both sides share it
main_process = os.getpid()  # this module is loaded before the pool forks
supervisors: list[Supervisor] = []  # of this process: one in a pool child, none in the main process

celery_app = make_celery(settings())
celery_app.conf.update(
    imports=["worker.tasks"],
    worker_pool="prefork",
    worker_concurrency=1,  # one runner per device; more devices, more workers
    worker_prefetch_multiplier=1,  # a bell needs no stock
    task_acks_late=False,  # the row is the truth: a message may be lost, never repeated for an hour
    worker_enable_remote_control=False,  # cancel goes through the row
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,  # structlog writes to stderr itself
    worker_proc_alive_timeout=60,  # a loaded host may take long to fork
    worker_soft_shutdown_timeout=settings().grace_seconds * 3 + 5,  # time to save resume state and give the lease back
    worker_cancel_long_running_tasks_on_connection_loss=False,  # the job does not need the broker
)


@worker_init.connect
def begin(**_: Any) -> None:
    """A worker that was started by `lethe up` ends with it, even when that is killed."""
    if parent := os.environ.get("LETHE_PARENT"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGTERM)


@worker_process_init.connect
def start_supervisor(**_: Any) -> None:
    """In the pool child's main thread, whose end is the runner's end. The child ends soon after the main process."""
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    name = f"worker:{socket.gethostname()}:{os.getpid()}"
    try:
        supervisors.append(Supervisor(settings(), name, draining.is_set))
    except Exception as error:  # noqa: BLE001  (Celery would swallow it and keep a child that can do nothing)
        log.error("supervisor.did_not_start", error=type(error).__name__)
        time.sleep(2)
        os._exit(1)


def _end_with_parent() -> None:
    """No parent-death signal: Celery may fork a child from a thread, whose end would then count as the parent's."""
    while os.getppid() == main_process:
        time.sleep(0.3)
    os._exit(1)


@worker_process_shutdown.connect
def stop_supervisor(**_: Any) -> None:
    while supervisors:
        supervisors.pop().close()


@worker_ready.connect
def look_unrung(**_: Any) -> None:
    """Ring for ourselves while work waits and the pool is idle: bells get lost."""
    threading.Thread(target=_look, daemon=True, name="look-unrung").start()


@worker_shutting_down.connect
def drain(**_: Any) -> None:
    draining.set()


def _look() -> None:
    store, wait = Store(settings().database), threading.Event()
    while not draining.is_set():
        wait.wait(settings().look_seconds)
        if state.active_requests or state.reserved_requests:
            continue
        try:
            with store.read() as session:
                waiting = jobs.claimable(session)
        except Exception as error:  # noqa: BLE001  (the database may be away for a while; look again)
            log.warning("look.failed", error=type(error).__name__)
            continue
        if waiting:
            ring(celery_app)
