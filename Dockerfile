# Two images from one file; neither holds a compiler, a cache or a secret, and both run as an ordinary user.
#
#   docker build --target server -t lethe-server .     the API, the sweeper and `lethe migrate`; without torch
#   docker build --target worker -t lethe-worker .     one runner per container, on a CPU or an NVIDIA GPU
#
# Packages come before code, so a change of code rebuilds and ships a layer of a few hundred kilobytes. Versions are
# those of constraints.txt; on Linux, PyPI's torch brings the CUDA libraries that a GPU needs and runs on a CPU too
# (`--build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu` takes the small one without them).

FROM python:3.11-slim AS base
ENV PATH=/opt/lethe/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    LETHE_DATA=/var/lib/lethe
RUN python -m venv /opt/lethe \
 && groupadd --gid 10001 lethe \
 && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin lethe \
 && install -d -o lethe -g lethe -m 0700 /var/lib/lethe
WORKDIR /build
COPY pyproject.toml constraints.txt ./

FROM base AS package
RUN pip install -c constraints.txt setuptools
COPY README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM base AS server-packages
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >/tmp/server.txt \
 && pip install -c constraints.txt -r /tmp/server.txt \
 && rm /tmp/server.txt

FROM server-packages AS server
COPY --from=package /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl
WORKDIR /var/lib/lethe
USER lethe
ENV LETHE_HOST=0.0.0.0
EXPOSE 8765
VOLUME /var/lib/lethe
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/readyz', timeout=4)"]
ENTRYPOINT ["lethe"]
CMD ["serve"]

FROM server-packages AS worker-packages
ARG PIP_EXTRA_INDEX_URL
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["worker"], sep="\n")' >/tmp/worker.txt \
 && pip install -c constraints.txt -r /tmp/worker.txt \
 && rm /tmp/worker.txt

FROM worker-packages AS worker
COPY --from=package /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl
WORKDIR /var/lib/lethe
USER lethe
VOLUME /var/lib/lethe
# Healthy: the warm runner is there. It is a child of Celery's pool child, and replaced at once when it dies.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import glob, sys; sys.exit(not any(b'worker.runner' in open(p, 'rb').read().split(b'\\0') for p in glob.glob('/proc/[0-9]*/cmdline')))"]
ENTRYPOINT ["lethe"]
CMD ["work"]
