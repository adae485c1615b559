# Three images: `cpu` (the default: ONNX Runtime, no torch), `cpu-torch` and `gpu` (CUDA).
#   docker build --tag rerankd:cpu .
#   docker build --target cpu-torch --build-arg TORCH_INDEX_URL=... --tag rerankd:cpu-torch .
#   docker build --target gpu --tag rerankd:gpu .
# Every package is installed by its hashes (requirements/, `make lock`), but for the CPU builds of torch.
# Dependencies come before code, so that a change of code reinstalls none of them.

# `make pin` writes digests behind the tags, here and in the compose files
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
COPY requirements requirements

FROM builder AS dependencies-cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes -r requirements/cpu.txt

FROM builder AS dependencies-cpu-torch
COPY constraints.txt ./
# the index of PyTorch's builds for CPUs; without it torch brings several GB of CUDA
ARG TORCH_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -c constraints.txt torch
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --no-deps -r requirements/torch.txt

FROM builder AS dependencies-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes -r requirements/gpu.txt

FROM builder AS code
# for the kernels of app/rerankd/engines/onnx/kernels; Python's headers are in the official images, but not in all of others
RUN headers=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))') \
    && apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev $(test -f "$headers/Python.h" || echo python3-dev) \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes -r requirements/build.txt
COPY models/registry.toml models/registry.toml
COPY models/templates models/templates
COPY models/minilm-qa models/minilm-qa
COPY pyproject.toml setup.py ./
COPY app app
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --prefix /opt/code .
# the shipped models, for registries that name them: /opt/venv/models/minilm-qa
RUN cd /opt/code && ln -s lib/python3*/site-packages/rerankd/models models

FROM ${PYTHON_IMAGE} AS service
RUN groupadd --gid 10001 rerankd \
    && useradd --uid 10001 --gid rerankd --home-dir /var/lib/rerankd --create-home --shell /usr/sbin/nologin rerankd
# ONNX Runtime reports the models that it opens to its maker unless it is told not to
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/var/lib/rerankd \
    HF_HOME=/var/lib/rerankd \
    RERANKD_HOST=0.0.0.0 \
    RERANKD_PORT=8000 \
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
ENTRYPOINT ["rerankd"]
CMD ["serve"]

FROM service AS gpu
COPY --from=dependencies-gpu /opt/venv /opt/venv
# ONNX Runtime looks for CUDA and cuDNN where the linker does; torch's packages bring them
USER root
RUN find /opt/venv -path '*/site-packages/nvidia/*' -type d -name lib > /etc/ld.so.conf.d/nvidia.conf && ldconfig
USER 10001:10001
COPY --from=code /opt/code /opt/venv

FROM service AS cpu-torch
COPY --from=dependencies-cpu-torch /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv
RUN ["python", "-c", "import torch, transformers"]
RUN ["python", "-m", "rerankd.engines.onnx.kernel_support"]

FROM service AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=code /opt/code /opt/venv
# without the kernels the image would be half as fast, and nobody would notice
RUN ["python", "-m", "rerankd.engines.onnx.kernel_support"]
