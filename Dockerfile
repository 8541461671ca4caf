# The worker's image: `worker run` by default, `worker migrate` before a new version runs.

# --- build: a virtual environment with the locked packages and this project -------------------------------------------
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src

# Every file is checked against its hash in the lock files. Wheels only: nothing is compiled and no package's code runs.
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN pip install --no-cache-dir --only-binary :all: --require-hashes --requirement requirements/build.txt \
    && python -m venv --without-pip /opt/worker \
    && uv pip install --python /opt/worker --only-binary :all: --require-hashes --requirement requirements/runtime.txt

COPY pyproject.toml ./
COPY jobs jobs
COPY worker worker
RUN hatchling build --target wheel --directory /dist \
    && uv pip install --python /opt/worker --no-deps /dist/*.whl

# --- the image: Python, the environment, and a user who owns nothing but /files ---------------------------------------
FROM python:3.11-slim
RUN pip uninstall --yes --no-cache-dir --root-user-action ignore pip setuptools wheel \
    && groupadd --gid 10001 worker \
    && useradd --uid 10001 --gid worker --no-create-home --no-log-init --shell /usr/sbin/nologin worker \
    && install --directory --owner worker --group worker /files
COPY --from=build /opt/worker /opt/worker
ENV PATH=/opt/worker/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 WORKER_FILES_DIR=/files
VOLUME ["/files"]

# A number, so that a platform can see that it isn't root's.
USER 10001:10001

# SIGTERM: no new claims, running jobs get WORKER_SHUTDOWN_GRACE (25 s), the rest are handed back. Give it 45 s in all.
STOPSIGNAL SIGTERM
# The command gives up by itself after 10 s where a server is away.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --retries=3 CMD ["worker", "status", "--check"]
CMD ["worker", "run"]
