# The server in two stages: one installs, the other runs what was installed. docs/image.md has sizes and commands.
#   docker build -t headway .
#   docker build -t headway --build-arg EXTRAS=torch,feast,redis .
#   docker build -t headway:cuda --build-arg EXTRAS=torch --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
# What setup.cfg calls extras, separated by commas: torch, feast, redis, onnx, s3, signing, …
ARG EXTRAS=""
# Where torch comes from: its builds for the CPU, or PyPI, whose builds bring CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
# The environment has no pip of its own: it is copied whole, and nothing is installed at run time.
RUN python -m venv --without-pip /opt/headway
COPY setup.cfg pyproject.toml requirements.txt README.md ./
COPY features features
COPY monitoring monitoring
COPY registry registry
COPY serving serving
# Wheels alone, in the tested versions: no compiler is needed, so none is there. Torch's index is asked for torch alone.
RUN install="pip --python /opt/headway/bin/python install --no-cache-dir --only-binary :all: --constraint requirements.txt"; \
    case ",${EXTRAS}," in *,torch,*) $install --no-deps --index-url "${TORCH_INDEX}" torch ;; esac \
    && $install ".${EXTRAS:+[${EXTRAS}]}" \
    && find /opt/headway -type d -name tests -prune -exec rm -r {} +

FROM python:${PYTHON}-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="headway" \
      org.opencontainers.image.description="A KServe-compatible model server for the MLflow registry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# What can install has no place here. The one folder that the server writes to is the cache; with a read-only root, mount it.
# A new volume takes over the owner of the folder that it is mounted at: so there is one for a Feast repository.
RUN pip uninstall --yes pip setuptools wheel \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin headway \
    && install --directory --owner 10001 --group 10001 /var/cache/headway /var/lib/feast
COPY --from=build /opt/headway /opt/headway
# HOME, because MLflow does not start without one, and a cluster may choose a user that nobody has heard of.
ENV PATH=/opt/headway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/var/cache
WORKDIR /
USER 10001:10001
EXPOSE 8080 8081
# Alive, not ready: what an engine does to the unhealthy is to restart them, and that loads no model faster.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('HEADWAY_SERVER__PORT', 8080)}/health/live\", timeout=2)"]
ENTRYPOINT ["headway"]
CMD ["serve"]
