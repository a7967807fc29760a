"""`lethe up`: server, Celery worker and runner as one deployment in one folder; and the waiting for dependencies."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import structlog
import uvicorn
from kombu import Connection
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from app import migration
from app.deployment import Deployment, deploy
from app.main import create_app
from app.queue import QUEUE
from app.records import api_key as api_keys
from app.records.session import Store
from app.settings import Settings

log = structlog.get_logger()


def run_embedded(settings: Settings) -> int:
    """Until Ctrl-C or TERM: then the server answers what it has, and the worker gives its job back. Exit status."""
    lethe = deploy(settings)
    migration.upgrade(lethe.store)
    with socket.socket() as probe:  # before the admin key is shown, which happens once
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((settings.host, settings.port))
    _greet(lethe)
    worker = _Worker(settings)
    config = uvicorn.Config(
        create_app(lethe), host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=5
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn hands its signals on once it is down
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        log.info("draining")
    finally:
        worker.stop()
    return 0


def worker_command(*options: str) -> list[str]:
    """The Celery worker, started by name: the server's side never imports it."""
    program = [sys.executable, "-m", "celery", "-q", "-A", "worker.celery_app", "worker"]
    return [*program, "-l", "warning", "-Q", QUEUE, "--without-gossip", "--without-mingle", *options]


def wait_for_dependencies(settings: Settings, schema: bool, seconds: float = 120) -> None:
    """Return once the database (with the newest schema, if asked) and the broker answer; OSError after `seconds`."""
    until = time.monotonic() + seconds
    store = Store(settings.database)
    while True:
        missing = _missing(settings, store, schema)
        if missing is None:
            store.close()
            return
        if time.monotonic() > until:
            raise OSError(f"{missing} did not answer within {seconds:.0f} s")
        log.info("waiting", dependency=missing)
        time.sleep(1)


def _missing(settings: Settings, store: Store, schema: bool) -> str | None:
    try:
        present = migration.present(store)
    except SQLAlchemyError:
        return "the database"
    if schema and present != migration.newest():
        return "the newest schema (run `lethe migrate`)"
    if settings.broker.startswith("filesystem"):
        return None
    try:
        with Connection(settings.broker, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except (OperationalError, OSError):
        return "the broker"
    return None


def _greet(lethe: Deployment) -> None:
    address = f"http://{lethe.settings.host}:{lethe.settings.port}"
    click.echo(f"Lethe       {address}\ndocs        {address}/docs\ndata        {lethe.settings.data.absolute()}")
    with lethe.store.write() as session:
        if not api_keys.any_admin(session):
            key = api_keys.issue(session, lethe.pepper, name="first", role="admin", actor="first start")[1]
            click.echo(f"admin key   {key}   (shown once: keep it, it is not stored)")
    click.echo(f"next        export LETHE_URL={address} LETHE_KEY=<the key>; lethe --help", nl=True)
    sys.stdout.flush()


class _Worker:
    """The Celery worker of `lethe up`: started again when it dies, ended when we end.

    It has a session of its own, so that Ctrl-C reaches it only through us, and ends with this process all the same.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._process = self._start()
        threading.Thread(target=self._watch, daemon=True, name="watch-worker").start()

    def stop(self) -> None:
        self._stopping.set()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=3 * self._settings.grace_seconds + 10)
        except subprocess.TimeoutExpired:
            log.warning("worker.killed")
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        while not self._stopping.wait(1.0):
            if self._process.poll() is not None and not self._stopping.is_set():
                log.error("worker.died", code=self._process.returncode)
                self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        data, parent = str(self._settings.data.absolute()), str(os.getpid())
        environment = {**os.environ, "LETHE_DATA": data, "LETHE_PARENT": parent}
        home = Path(__file__).resolve().parent.parent
        return subprocess.Popen(worker_command(), env=environment, cwd=home, start_new_session=True)
