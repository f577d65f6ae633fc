# syntax=docker/dockerfile:1
# The image of GPU workers, one for each TensorRT major release. infra/images/build.sh builds it
# from the repository's root.
ARG WORKER_BUILD
ARG WORKER_BASE

# hadolint ignore=DL3006
FROM ${WORKER_BUILD} AS install
ARG TENSORRT
WORKDIR /src
ENV DEBIAN_FRONTEND=noninteractive
# apt's index changes, but a Python of the base's release is as pinned as the base.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/enginefarm
COPY constraints.txt pyproject.toml README.md ./
COPY infra/images/requirements.py infra/images/requirements.py
RUN python3 infra/images/requirements.py farm torch gpu > farm.txt \
    && grep -v '^tensorrt==' constraints.txt > locked.txt \
    && echo "tensorrt==${TENSORRT}" >> locked.txt \
    && /opt/enginefarm/bin/pip install --no-cache-dir -c locked.txt -r farm.txt
COPY enginefarm enginefarm
COPY flows flows
COPY tasks tasks
COPY deployments deployments
RUN /opt/enginefarm/bin/pip install --no-cache-dir --no-deps . \
    && /opt/enginefarm/bin/pip check
# Only the metadata: the library cannot be loaded without a driver.
RUN /opt/enginefarm/bin/python -c "from importlib.metadata import version; \
assert version('tensorrt') == '${TENSORRT}', version('tensorrt')"

# hadolint ignore=DL3006
FROM ${WORKER_BASE}
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 farm \
    && useradd --uid 10001 --gid farm --home-dir /var/lib/enginefarm --create-home farm
COPY --from=install /opt/enginefarm /opt/enginefarm
COPY --chmod=0555 infra/images/entrypoint.sh /usr/local/bin/entrypoint
ENV PATH=/opt/enginefarm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ENGINEFARM_HOME=/var/lib/enginefarm \
    ENGINEFARM_CACHE=/var/lib/enginefarm/cache \
    PREFECT_HOME=/var/lib/enginefarm/prefect \
    ENGINEFARM_METRICS_PORT=9464 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/enginefarm
ENTRYPOINT ["entrypoint"]
CMD ["enginefarm", "worker", "--help"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-m", "enginefarm.farm.worker.healthcheck"]
