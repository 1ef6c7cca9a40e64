# syntax=docker/dockerfile:1
# The server in a container; docs/serving.md says how it is built and run.
#
#   docker build -t actvar-trt .                               ONNX Runtime on a CPU
#   docker build -t actvar-trt:cuda --build-arg VARIANT=cuda . ONNX Runtime and TensorRT-RTX on NVIDIA's GPUs

ARG VARIANT=cpu

FROM ubuntu:24.04 AS cpu
ENV ACTVAR_EXTRAS=cpu,hub,serve

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS cuda
ENV ACTVAR_EXTRAS=gpu,hub,serve

FROM ${VARIANT} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
# Others than the variant's: with "export" checkpoints of PyTorch are read, too.
ARG EXTRAS=
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/actvar
WORKDIR /src
COPY . .
RUN /opt/actvar/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS:-$ACTVAR_EXTRAS}]"

FROM python
LABEL org.opencontainers.image.title="ActVAR-TRT" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/actvar /opt/actvar
# The one folder that is written to: bundles of checkpoints, and what libraries keep. All else may be read-only.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/cache/actvar --shell /usr/sbin/nologin actvar \
    && install -d -o actvar -g actvar /var/cache/actvar
ENV PATH=/opt/actvar/bin:$PATH \
    HOME=/var/cache/actvar \
    ACTVAR_CACHE=/var/cache/actvar \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/cache/actvar
VOLUME ["/var/cache/actvar"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["actvar-trt"]
CMD ["serve", "--host", "0.0.0.0"]
