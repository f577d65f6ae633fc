# syntax=docker/dockerfile:1
# The image of everything that needs no GPU: Prefect server, S3 server, control worker and
# cross-builds. Built by infra/images/build.sh, from the repository's root.
ARG CONTROL_BASE
FROM ${CONTROL_BASE} AS install
WORKDIR /src
RUN python -m venv /opt/enginefarm
# The locked versions are in a separate layer: a change of our code does not download them again.
COPY constraints.txt pyproject.toml README.md ./
COPY infra/images/requirements.py infra/images/requirements.py
RUN python infra/images/requirements.py farm torch > farm.txt \
    && /opt/enginefarm/bin/pip install --no-cache-dir -c constraints.txt -r farm.txt
COPY enginefarm enginefarm
COPY flows flows
COPY tasks tasks
COPY deployments deployments
RUN /opt/enginefarm/bin/pip install --no-cache-dir --no-deps . \
    && /opt/enginefarm/bin/pip check

FROM ${CONTROL_BASE}
RUN groupadd --gid 10001 farm \
    && useradd --uid 10001 --gid farm --home-dir /var/lib/enginefarm --create-home farm \
    && install -d -o farm -g farm /var/lib/enginefarm/s3 # a volume there takes its owner
COPY --from=install /opt/enginefarm /opt/enginefarm
COPY --chmod=0555 infra/images/entrypoint.sh /usr/local/bin/entrypoint
ENV PATH=/opt/enginefarm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ENGINEFARM_HOME=/var/lib/enginefarm \
    ENGINEFARM_CACHE=/var/lib/enginefarm/cache \
    PREFECT_HOME=/var/lib/enginefarm/prefect \
    ENGINEFARM_METRICS_PORT=9464
USER 10001:10001
WORKDIR /var/lib/enginefarm
ENTRYPOINT ["entrypoint"]
CMD ["enginefarm", "worker", "--control"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-m", "enginefarm.farm.worker.healthcheck"]
