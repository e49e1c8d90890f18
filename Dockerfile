# One image for head, workers, MLflow and jobs. The code is baked in: `ray job submit` uploads nothing, and no pod
# installs anything when it starts.
#
#   docker build -t denoising-vae --build-arg GIT_SHA=$(git rev-parse HEAD) .
#
# BASE is any Debian with Python 3.11 as `python3`, its venv and its C headers; 3.11 is what constraints.txt is for.
# Where packages come from an index of your own, hand over pip's settings, and its authority if it has one (named in
# them as `cert = /run/secrets/ca.pem`). Neither stays in the image:
#
#   docker build ... --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.pem,src=ca.pem .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# What changes most seldom comes first. Each stage is the one before it and a little more, so the 7 GB of packages are
# one layer, which is stored, pushed and pulled once, and a change of code moves only the last two megabytes.
FROM ${BASE} AS system
# wget: KubeRay's probes call it. g++: torch.compile (`cluster.compile`) builds what it needs when it runs, on GPUs too.
# A login shell, as older KubeRays start Ray by, sets a PATH of its own: it has to find Ray as well.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 dvae \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /bin/bash dvae \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/venv.sh
ENV PATH=/opt/venv/bin:$PATH

# Only what installing reads, so that the rest of pyproject.toml may change without a new layer of packages.
FROM system AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
e = p['optional-dependencies']; print(*p['dependencies'], *e['train'], *e['server'], *e['baselines'], sep='\n')" > requirements.txt \
    && rm pyproject.toml

FROM system AS packages
COPY --from=requirements /requirements /opt/requirements
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /opt/venv \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf pip install --no-cache-dir --disable-pip-version-check \
       -c /opt/requirements/constraints.txt -r /opt/requirements/requirements.txt

FROM packages AS code
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY pipeline pipeline
COPY deploy deploy
# setuptools came with torch.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index --no-build-isolation --root /code .

FROM packages
COPY --from=code /code/opt/venv /opt/venv
# The root may be read-only: everything that has to write (Ray, matplotlib, caches of compilers) does it below /tmp.
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
ARG BASE
ARG GIT_SHA=unknown
# Below the arguments: by this line even an older Podman sees that they have changed, when the code has not.
RUN install --directory --owner dvae --group dvae /work
# The pipeline notes it in every artifact.
ENV DVAE_GIT_SHA=${GIT_SHA}
LABEL org.opencontainers.image.title="denoising-vae" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.revision="${GIT_SHA}"
# A number: Kubernetes cannot tell from a name that it is not root.
USER 10001:10001
WORKDIR /work
CMD ["python", "-m", "pipeline", "--help"]
