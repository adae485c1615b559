# Two images: `cpu` (the default; ONNX Runtime and no torch) and `gpu` (CUDA).
#   docker build --tag rerankd:cpu .
#   docker build --target gpu --tag rerankd:gpu .
# Dependencies come before code, so that a change of code reinstalls none of them.

FROM python:3.11-slim-bookworm AS builder
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt ./
# an empty package stands for the code until the dependencies are installed
RUN mkdir app && touch app/__init__.py

FROM builder AS dependencies-cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install -c constraints.txt '.[cpu]'

FROM builder AS dependencies-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install -c constraints.txt '.[gpu]'

FROM builder AS code
# for the kernels of app/engines/kernels; without a compiler the image would have none, and be slower
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY setup.py ./
COPY app app
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --prefix /opt/code .

FROM python:3.11-slim-bookworm AS service
RUN groupadd --gid 10001 rerankd \
    && useradd --uid 10001 --gid rerankd --home-dir /var/lib/rerankd --create-home --shell /usr/sbin/nologin rerankd
COPY models/registry.toml /srv/rerankd/models/registry.toml
COPY models/templates /srv/rerankd/models/templates
COPY models/minilm-qa /srv/rerankd/models/minilm-qa
# ONNX Runtime reports the models that it opens to its maker unless it is told not to
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/var/lib/rerankd \
    HF_HOME=/var/lib/rerankd \
    RERANKD_HOST=0.0.0.0 \
    RERANKD_PORT=8000 \
    RERANKD_REGISTRY=/srv/rerankd/models/registry.toml \
    RERANKD_HUB_CACHE=/var/lib/rerankd/hub \
    RERANKD_PROFILES=/var/lib/rerankd/profiles
WORKDIR /srv/rerankd
# by number, so that Kubernetes can tell that it is not root
USER 10001:10001
EXPOSE 8000
# http.client, because urllib would ask a proxy that the environment names
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['RERANKD_PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
# exec form: SIGTERM reaches the server, which finishes what runs and exits with 0
CMD ["rerankd", "serve"]

FROM service AS gpu
COPY --from=dependencies-gpu /opt/venv /opt/venv
# ONNX Runtime looks for CUDA and cuDNN where the linker does; torch's packages bring them
USER root
RUN find /opt/venv -path '*/site-packages/nvidia/*' -type d -name lib > /etc/ld.so.conf.d/nvidia.conf && ldconfig
USER 10001:10001
COPY --from=code /opt/code /opt/venv

FROM service AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv
